"""What an attacker gets who does not know a client's local training.

    python benchmarks/unknown_training.py photos.zip --match 'imagenette*' --limit 12

Each client trains on one image by each of some protocols. Attackers who know the protocol, who take
the update for one step, and who believe in `Between` spend the same number of gradients: a known
protocol of T steps costs T of them a step. Means over the clients with 95 % t-intervals, and
differences to who knows the protocol, paired.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.audit import fit
from gifd.campaign.sweep import seeds_of
from gifd.federation.client import Client
from gifd.federation.protocols import FedAvg
from gifd.images import read_images
from gifd.interval import written
from gifd.metrics import PSNR, SSIM
from gifd.terminal import one_line_errors

PROTOCOLS = (
    "fedavg:lr=0.01,steps=4",
    "fedavg:lr=0.03,steps=16",
    "fedavg:lr=0.1,steps=32",
    "fedavg:lr=0.001,steps=8,optimizer=adam",
)
BELIEFS = ("", "fedavg:lr=0.01", "between:at=0.0", "between:at=0.25", "between")


@one_line_errors
def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    limit: Annotated[int, typer.Option(help="Number of clients; their images evenly spaced.")] = 12,
    protocol: Annotated[list[str] | None, typer.Option(help="What clients do; repeat.")] = None,
    gradients: Annotated[int, typer.Option(help="That each attack spends.")] = 160,
    victim: str = "convnet",
    size: int = 32,
    threads: int = 0,
) -> None:
    """Print one table."""
    if threads:
        torch.set_num_threads(threads)
    images = list(read_images(source, match=match, limit=limit, size=size))
    typer.echo(f"{victim}, {size} px, ig, {gradients} gradients, {len(images)} clients\n")
    typer.echo("| training | belief | PSNR | against who knows it | SSIM | explained |")
    typer.echo("|---" * 6 + "|")
    for does in protocol or PROTOCOLS:
        known: list[float] = []
        for belief in BELIEFS:
            psnr, ssim, explained = [], [], 0
            for index, (_, image) in enumerate(images):
                seeds = seeds_of(index, seed=0)
                model = catalog.victim(victim, classes=10, size=size, seed=seeds.victim)
                real = catalog.protocol(does, images=1)
                label = torch.tensor([index % 10])
                upload, secret = Client(model=model, protocol=real).step(image[None], label)
                believed = catalog.protocol(belief or does, images=1)
                seen = observe(replace(upload, protocol=believed, labels=label))
                explained += fit(seen, label, clients=20).explained
                steps = believed.steps if isinstance(believed, FedAvg) else 1
                attack = catalog.attack("ig", prior=None, preset="strongest", restarts=1)
                found = attack.with_steps(max(2, gradients // steps))(seen, seed=seeds.trial)
                psnr.append(float(PSNR()(found.images, secret.images)))
                ssim.append(float(SSIM()(found.images, secret.images)))
            known = known or psnr
            change = written([a - b for a, b in zip(psnr, known, strict=True)]) if belief else ""
            row = (does, belief or "known", written(psnr), change, written(ssim))
            typer.echo(f"| {' | '.join(row)} | {explained} of {len(images)} |")


if __name__ == "__main__":
    typer.run(main)
