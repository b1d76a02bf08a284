"""The cost of a step of GIFD with the paper's generators at their official sizes.

    python benchmarks/priors.py

Random weights (the cost does not depend on them), ResNet-18 at 64 px, one image, one restart.
Each row is measured in its own process: seconds per step (the median of `--steps`, after one
warm-up step) and peak resident memory of the process. Nothing is written to a file.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import Attack
from gifd.federation.client import Client
from gifd.priors import Generator, stylegan2
from gifd.priors.biggan import biggan, biggan_tensors
from gifd.priors.stylegan2 import stylegan2_tensors
from gifd.search import Latent, Phase, Progress

CONFIG_F = [512, 512, 512, 512, 512, 256, 128, 64, 32]  # 4 to 1024 px


def official(name: str) -> Generator:
    """A generator of the paper by `<architecture> <way to 64 px>`."""
    if name == "digiface-dcgan":
        return catalog.prior(name)
    architecture, _, output = name.partition(" ")
    if architecture == "stylegan2-1024":
        tensors = stylegan2_tensors(CONFIG_F)
        return (
            stylegan2(tensors, area=64) if output == "area" else stylegan2(tensors, resolution=64)
        )
    return biggan(biggan_tensors(256), area=64)


ROWS = ("digiface-dcgan", "stylegan2-1024 area", "stylegan2-1024 exit", "biggan-deep-256 area")


def measure(name: str, steps: int) -> dict[str, object]:
    """Cost of a step in the latent and in the deepest feature domain of the paper."""
    prior = official(name)
    model = catalog.victim("resnet18", classes=10, size=64, seed=0)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    observation = observe(Client(model=model).step(images, torch.tensor([3]))[0])
    deepest = catalog.attack("gifd", prior=prior, preset="paper").phases[-1].space
    row: dict[str, object] = {"prior": name, "stages": len(prior)}
    row["parameters"] = sum(p.numel() for s in prior.stages for p in s.parameters())
    for space in (Latent(), deepest):
        phase = Phase(name="probe", space=space, steps=steps + 1)
        attack = Attack(name="probe", reference="-", phases=(phase,), restarts=1, prior=prior)
        at = [time.perf_counter()]
        moments: list[float] = []

        def note(_: Progress, at: list[float] = at, moments: list[float] = moments) -> None:
            moments.append(time.perf_counter() - at[0])
            at[0] = time.perf_counter()

        attack(observation, callback=note)
        row[repr(space)] = statistics.median(moments[1:])
    row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return row


def main(
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 5,
    only: Annotated[str, typer.Option(help="Measure only this row, as JSON.")] = "",
) -> None:
    """Print the table."""
    if only:
        typer.echo(json.dumps(measure(only, steps)))
        return
    typer.echo(f"Medians of n = {steps} steps\n")
    typer.echo("| prior | stages | parameters | s, latent | s, deepest feature | peak memory, GB |")
    typer.echo("|---|---|---|---|---|---|")
    for name in ROWS:
        command = [sys.executable, __file__, "--only", name, "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        latent, feature = (value for key, value in row.items() if "(" in key)
        typer.echo(
            f"| {name} | {row['stages']} | {row['parameters']:,} | {latent:.2f} | {feature:.2f} "
            f"| {row['peak_gb']:.1f} |"
        )


if __name__ == "__main__":
    typer.run(main)
