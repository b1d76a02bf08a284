"""`gifd prior score`: which prior can express these images best."""

from __future__ import annotations

import dataclasses
import json as json_
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from gifd import catalog, terminal
from gifd.campaign.prior_score import PriorScore, score_prior
from gifd.cli.options import LAST_SEED, Offline
from gifd.errors import InputError
from gifd.images import class_in, read_images, write_image
from gifd.interval import written
from gifd.search import Callback
from gifd.terminal import one_line_errors


@one_line_errors
def score(
    priors: Annotated[list[str], typer.Argument(help="Names or checkpoint files to compare.")],
    images: Annotated[Path, typer.Option(help="Folder or zip of held-out images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    limit: Annotated[int, typer.Option(help="Images to use, evenly spaced.", min=2)] = 12,
    labels: Annotated[
        str | None,
        typer.Option(
            help="For conditional priors: a regular expression whose group is the class's "
            "number, as in 'class([0-9]+)'. Default: random classes."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps per search, over all phases.", min=8)] = 400,
    samples: Annotated[
        int, typer.Option(help="Samples of each prior, for the shift.", min=2)
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=LAST_SEED)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sheets of the fitted images.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every value on stdout.")] = False,
    offline: Offline = False,
) -> None:
    """Score priors: how well each expresses held-out images, fitted by pixels, not by gradients.

    Prints PSNR and ST-LPIPS with 95 % intervals, in the latent alone and with feature domains. The
    shift is the kernel distance between the images and the prior's samples.
    """
    generators = [catalog.prior(name, offline=offline) for name in priors]
    channels, *size = generators[0].image_shape
    for generator in generators:
        if generator.image_shape != generators[0].image_shape:
            raise InputError(f"expected priors of one size, got {generators[0]} and {generator}")
    found = list(
        read_images(images, match=match, limit=limit, size=(size[0], size[1]), channels=channels)
    )
    if len(found) < 2:
        raise InputError(f"expected at least two images in '{images}', got {len(found)}")
    pictures = torch.stack([picture for _, picture in found])
    numbers = None if labels is None else [class_in(name, labels) for name, _ in found]
    scores = []
    for generator in generators:
        with terminal.progress(generator.name) as bar:

            def told(index: int, bar: Callback = bar) -> Callback:
                return lambda now: bar(
                    dataclasses.replace(now, phase=f"image {index + 1}/{len(found)}, {now.phase}")
                )

            scored = score_prior(
                generator,
                pictures,
                steps=steps,
                labels=numbers,
                samples=samples,
                seed=seed,
                offline=offline,
                callback=told,
            )
        scores.append(scored)
        if out is not None:
            rows = [pictures, *scored.fits.values()]
            sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
            write_image(sheet, out / f"{scored.prior}.png")
    _show(scores, len(found))
    if json:
        plain = [
            {f.name: getattr(j, f.name) for f in dataclasses.fields(j) if f.name != "fits"}
            for j in scores
        ]
        report = {"images": [name for name, _ in found], "steps": steps, "seed": seed}
        Console().print_json(json_.dumps(report | {"priors": plain}))


def _show(scores: list[PriorScore], count: int) -> None:
    heads = ("prior", "latent PSNR", "ST-LPIPS", "features PSNR", "ST-LPIPS", "shift")
    rows = [(j.prior, *_cells(j.psnr, j.stlpips), f"{j.shift:.1f}") for j in scores]
    first, *others = scores
    for other in others:
        psnr, stlpips = (
            {
                domain: [a - b for a, b in zip(values[domain], base[domain], strict=True)]
                for domain in base
            }
            for values, base in ((other.psnr, first.psnr), (other.stlpips, first.stlpips))
        )
        rows.append((f"{other.prior} - {first.prior}", *_cells(psnr, stlpips), ""))
    terminal.table(f"{count} images", heads, rows, console=terminal.say)


def _cells(psnr: dict[str, list[float]], stlpips: dict[str, list[float]]) -> list[str]:
    return [written(metric[domain]) for domain in psnr for metric in (psnr, stlpips)]
