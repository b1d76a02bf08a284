"""The quality of a linear regression from the head's input to the image, by number of samples.

    python benchmarks/regression.py faces.zip --match 'face_*' --samples 60,240,960

There is no search. Samples of the prior are passed through the victim, forward only; a ridge
regression from the head's input to the image (averaged down to 32 px) is fitted to them and applied
to the representation that each private image's update shows. PSNR is that of the estimate,
enlarged again. The last row is the mean of the samples, which needs no update. One regression is
fitted for one victim: intervals are over the n images and hold for this victim and these samples.
Nothing is written to a file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.federation.client import Client
from gifd.images import read_images
from gifd.interval import written
from gifd.leakage.representation import observed_representations, representations
from gifd.metrics import PSNR
from gifd.search import Regression
from gifd.search.ridge import Ridge
from gifd.search.sources import moved

CHUNK = 20


def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    limit: Annotated[int | None, typer.Option(help="Images to use, evenly spaced.")] = None,
    samples: Annotated[str, typer.Option(help="Numbers of samples.")] = "60,240,960",
    shift: Annotated[float, typer.Option(help="Largest shift of a sample, as a share.")] = 0.0,
    prior: str = "faces64",
    victim: str = "resnet18",
    classes: int = 10,
    size: int = 64,
) -> None:
    """Print one row per number of samples: PSNR with its 95 % interval over the images."""
    model = catalog.victim(victim, classes=classes, size=size, seed=0)
    generator = catalog.prior(prior, shape=(3, size, size))
    images, shown = [], []
    for index, (_, image) in enumerate(read_images(source, match=match, limit=limit, size=size)):
        label = torch.tensor([index % classes])
        observation = observe(Client(model=model).step(image[None], label)[0])
        images.append(image)
        shown.append(observed_representations(observation, label).directions)
    private, observed = torch.stack(images), torch.cat(shown)
    counts = [int(count) for count in samples.split(",")]
    inputs, outputs = [], []
    began = time.perf_counter()
    rule, rng = Regression(shift=shift), torch.Generator().manual_seed(0)
    for start in range(0, max(counts), CHUNK):
        drawn = moved(generator.sample(CHUNK, seed=start), rule.shift, rng)
        inputs.append(representations(model, drawn))
        outputs.append(rule.small(drawn))
    seconds = (time.perf_counter() - began) / max(counts)
    x, small = torch.cat(inputs), torch.cat(outputs)
    y, shape = small.flatten(1), small.shape[1:]
    typer.echo(f"One victim and one draw of samples; {seconds:.3f} s per sample\n")
    typer.echo("| samples | n | PSNR, dB |\n|---|---|---|")
    for count in counts:
        guess = Ridge.fit(x[:count], y[:count])(observed)
        typer.echo(f"| {count} | {len(private)} | {_psnr(guess.reshape(-1, *shape), private)} |")
    mean = small.mean(0).expand(len(private), *shape)
    typer.echo(f"| their mean | {len(private)} | {_psnr(mean, private)} |")


def _psnr(small: torch.Tensor, private: torch.Tensor) -> str:
    large = F.interpolate(small.clamp(0, 1), size=private.shape[-2:], mode="bilinear")
    metric = PSNR()
    return written([float(metric(a[None], b[None])) for a, b in zip(large, private, strict=True)])


if __name__ == "__main__":
    typer.run(main)
