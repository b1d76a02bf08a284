"""What training and unequal clients do to an attack: untrained, then after rounds of a federation.

    python benchmarks/global_model.py photos.zip --labels 'class([0-9]+)'

The images are dealt to clients by their classes (`gifd.federation.dealing`), and a federation is
trained for each probability that an image goes to the owner of its class. At the global model
after some rounds, the first client sends one gradient of one of its images, which is attacked. The
images are the same for all rounds of a federation, so differences are paired. There is one
federation for each probability: means over n images, each with a start of its own, and 95 %
t-intervals that hold for these federations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import Attack
from gifd.campaign.sweep import seeds_of
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.federation.dealing import dealt, held_out
from gifd.federation.simulation import Simulation, accuracy
from gifd.interval import written
from gifd.metrics import PSNR, SSIM
from gifd.model import Model
from gifd.terminal import one_line_errors
from gifd.training import ImageSet, read_image_set

CLIENT = 0
"""The one that is attacked."""


@one_line_errors
def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of labelled images.")],
    labels: Annotated[str, typer.Option(help="As of 'gifd federate'.")] = "class([0-9]+)",
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    owns: Annotated[
        str, typer.Option(help="Probabilities that an image goes to the owner of its class.")
    ] = "0.1,0.5,0.9",
    rounds: Annotated[str, typer.Option(help="Attacked after these; 0 first: untrained.")] = (
        "0,1,5,20"
    ),
    clients: int = 10,
    training: Annotated[str, typer.Option(help="What clients compute in a round.")] = (
        "fedavg:lr=0.001,batch_size=16,optimizer=adam"
    ),
    protocol: Annotated[str, typer.Option(help="What the attacked client computes.")] = "fedsgd",
    attack: str = "ig",
    evaluations: int = 200,
    limit: Annotated[int, typer.Option(help="Images of the client to attack.")] = 8,
    victim: str = "convnet",
    prior: str = "photos64",
    size: int = 32,
    seed: int = 0,
    threads: int = 0,
) -> None:
    """Print one table."""
    if threads:
        torch.set_num_threads(threads)
    numbers = [int(number) for number in rounds.split(",")]
    if numbers != sorted(set(numbers)) or numbers[0] < 0:
        raise InputError(f"expected --rounds that ascend from 0, got {rounds}")
    data = read_image_set(source, size=size, match=match, labels=labels)
    assert data.labels is not None
    generator = catalog.prior(prior, shape=(3, size, size)) if catalog.needs_prior(attack) else None
    built = catalog.attack(
        attack, prior=generator, preset="strongest", restarts=1, evaluations=evaluations
    )
    first = catalog.victim(victim, classes=len(data.classes), size=size, seed=seed)
    typer.echo(f"{victim}, {attack}, {evaluations} evaluations, {clients} clients, {training}\n")
    typer.echo("| own | after round | accuracy | n | PSNR | against the first | SSIM | labels |")
    typer.echo("|---" * 8 + "|")
    for own in (float(text) for text in owns.split(",")):
        rng = torch.Generator().manual_seed(seed)
        held, taught = held_out(len(data), rng)
        parts = dealt(data.labels[taught], clients=clients, own=own, rng=rng)
        simulation = Simulation(
            model=first,
            images=data.images,
            labels=data.labels,
            shares=[taught[part] for part in parts],
            protocol=lambda images: catalog.protocol(training, images=images),
            seed=seed,
        )
        shares = simulation.shares[CLIENT]
        places = np.linspace(0, len(shares) - 1, min(limit, len(shares))).round().astype(int)
        private = shares[torch.from_numpy(places)]
        models = {0: first}
        for done in simulation.rounds(numbers[-1]):
            if done.number in numbers:
                models[done.number] = done.after
        base: list[float] = []
        for number in numbers:
            model = models[number]
            right = accuracy(model, data.images[held], data.labels[held])
            rows = [
                _attacked(model, data, int(i), protocol, built, seeds_of(n, seed=seed).trial)
                for n, i in enumerate(private)
            ]
            psnr, ssim, named = (list(column) for column in zip(*rows, strict=True))
            base = base or psnr
            against = written([a - b for a, b in zip(psnr, base, strict=True)])
            typer.echo(
                f"| {own:g} | {number} | {right:.2f} | {len(rows)} | {written(psnr)} | "
                f"{against if number != numbers[0] else ''} | {written(ssim)} | "
                f"{int(sum(named))} of {len(rows)} |"
            )


def _attacked(
    model: Model, data: ImageSet, index: int, protocol: str, attack: Attack, seed: int
) -> tuple[float, float, float]:
    """PSNR and SSIM of the answer, and whether its label is right."""
    assert data.labels is not None
    client = Client(model=model, protocol=catalog.protocol(protocol, images=1))
    image = data.images[index][None].float() / 255
    upload, secret = client.step(image, data.labels[index][None])
    answer = attack(observe(upload), seed=seed)
    psnr, ssim = (float(each(answer.images, secret.images)) for each in (PSNR(), SSIM()))
    return psnr, ssim, float(answer.labels.tolist() == secret.labels.tolist())


if __name__ == "__main__":
    typer.run(main)
