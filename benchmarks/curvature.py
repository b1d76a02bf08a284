"""Which kernel width of the smoothed curvature gives the best search direction?

    python benchmarks/curvature.py faces.zip --match 'face_*' --limit 4

For starts x at several distances from a private image x*, the cosine between the negative
gradient of the matching distance at x and the direction to the private image, x* - x. `after a
blur` is the same after a Gaussian blur of the gradient, roughly what a generator's features pass
on. Each image has its own victim and starts (`seeds_of`); means over the n images with 95 %
t-intervals. Nothing is written to a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.func import grad

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.campaign.sweep import Keys, covered, seeds_of
from gifd.federation.client import Client
from gifd.images import read_images
from gifd.interval import written
from gifd.priors import Generator
from gifd.search import Cosine, smoothed_curvature


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` pixels."""
    reach = int(3 * sigma) + 1
    taps = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = (taps / taps.sum()).view(1, 1, -1, 1).repeat(3, 1, 1, 1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def starts(truth: Tensor, prior: Generator, seed: int) -> dict[str, Tensor]:
    """Images from far to near: noise, a sample of the prior, a mixture, a blurred truth."""
    rng = torch.Generator().manual_seed(seed)
    sample = prior.sample(1, seed)
    return {
        "noise": (0.45 + 0.25 * torch.randn(truth.shape, generator=rng)).clamp(0, 1),
        "prior sample": sample,
        "half-way": 0.3 * sample + 0.7 * blur(truth, 2.0),
        "blurred truth": blur(truth, 2.0),
    }


def direction(observation: Observation, labels: Tensor, start: Tensor, width: float) -> Tensor:
    """The negative gradient of the cosine distance at `start`."""

    def distance(images: Tensor) -> Tensor:
        with smoothed_curvature(width):
            replayed = observation.replay(images, labels)
        return Cosine()(replayed, observation.update)

    slope: Tensor = grad(distance)(start)
    return -slope


def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: str = "*",
    limit: int = 4,
    victim: str = "resnet18",
    prior: str = "faces64",
    widths: str = "0,0.5,1,2,4,16",
    victim_seed: Annotated[
        int, typer.Option(help="Seed of the victims' weights, spread over the images.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the starts, likewise.", min=0)] = 0,
) -> None:
    """Print the table."""
    generator = catalog.prior(prior)
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    victims, keys = set[str](), Keys()
    for index, (_, image) in enumerate(read_images(source, match=match, limit=limit)):
        seeds = seeds_of(index, seed=seed, victim_seed=victim_seed)
        model = catalog.victim(victim, classes=10, size=64, seed=seeds.victim)
        victims.add(keys.of(model))
        truth = image[None]
        upload, secret = Client(model=model).step(truth, torch.tensor([index % 10]))
        observation = observe(upload)
        for name, start in starts(truth, generator, seeds.trial).items():
            home = (truth - start).flatten()
            for width in map(float, widths.split(",")):
                step = direction(observation, secret.labels, start, width)
                straight = F.cosine_similarity(step.flatten(), home, dim=0)
                blurred = F.cosine_similarity(blur(step, 1.5).flatten(), home, dim=0)
                found.setdefault((name, width), []).append((float(straight), float(blurred)))
    print(f"{covered(len(victims))}\n")
    print("| start | width c | n | cosine with the true direction | after a blur |")
    print("|---|---|---|---|---|")
    for (name, width), pairs in found.items():
        plain, smooth = (written(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {width:g} | {len(pairs)} | {plain} | {smooth} |")


if __name__ == "__main__":
    typer.run(main)
