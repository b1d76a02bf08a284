"""What a second, fourth and eighth update of the same images are worth.

    python benchmarks/rounds.py faces.zip --match 'face_*' --limit 6

Each client sends one gradient of one image at the weights of several rounds, here independent ones.
The attack takes the same number of steps, so its cost grows with the rounds. Means over the clients
with 95 % t-intervals, and differences to one round, paired.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacker.rounds import rounds
from gifd.campaign.sweep import drawn, seeds_of
from gifd.federation.client import Client
from gifd.images import read_images
from gifd.interval import written
from gifd.metrics import PSNR, SSIM
from gifd.terminal import one_line_errors


@one_line_errors
def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    limit: Annotated[int, typer.Option(help="Number of clients; their images evenly spaced.")] = 6,
    counts: Annotated[
        str, typer.Option(help="Numbers of rounds; the first is compared.")
    ] = "1,2,4,8",
    attack: str = "ig",
    steps: Annotated[int, typer.Option(help="Steps of the attack, whatever the rounds.")] = 300,
    victim: str = "convnet",
    prior: str = "faces64",
    defense: Annotated[list[str] | None, typer.Option(help="E.g. 'noise:std=0.001'.")] = None,
    size: int = 64,
    threads: int = 0,
) -> None:
    """Print one table."""
    if threads:
        torch.set_num_threads(threads)
    numbers = [int(count) for count in counts.split(",")]
    generator = catalog.prior(prior) if catalog.needs_prior(attack) else None
    built = catalog.attack(attack, prior=generator, preset="strongest", restarts=1, steps=steps)
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in numbers}
    for index, (name, image) in enumerate(read_images(source, match=match, limit=limit, size=size)):
        seen = []
        for number in range(max(numbers)):
            seeds = seeds_of(index * max(numbers) + number, seed=0)
            model = catalog.victim(victim, classes=10, size=size, seed=seeds.victim)
            chosen = drawn([catalog.defense(text) for text in defense or ()], seeds.trial)
            client = Client(model=model, defenses=chosen, seed=seeds.trial)
            upload, secret = client.step(image[None], torch.tensor([index % 10]))
            seen.append(observe(upload, defenses=chosen))
        for count in numbers:
            answer = built(rounds(seen[:count]), seed=index)
            psnr, ssim = (float(each(answer.images, secret.images)) for each in (PSNR(), SSIM()))
            found[count].append((psnr, ssim))
            typer.echo(f"{name}, {count} rounds: {psnr:.1f} dB", err=True)
    typer.echo(f"{victim}, {attack}, {steps} steps; n = {len(found[numbers[0]])}\n")
    typer.echo("| rounds | PSNR | SSIM | PSNR against the first row |\n|---|---|---|---|")
    first = found[numbers[0]]
    for count, rows in found.items():
        against = written([a[0] - b[0] for a, b in zip(rows, first, strict=True)])
        means = " | ".join(written([row[i] for row in rows]) for i in (0, 1))
        typer.echo(f"| {count} | {means} | {against if count != numbers[0] else ''} |")


if __name__ == "__main__":
    typer.run(main)
