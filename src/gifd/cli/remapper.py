"""`gifd prior remapper`: train the classifier for label mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gifd import catalog, terminal
from gifd.cli.options import LAST_SEED, Device, Offline, device_of
from gifd.errors import InputError
from gifd.priors import Generator, write_remapper
from gifd.tensor_files import check_ending
from gifd.terminal import one_line_errors
from gifd.training import REMAPPER_STEPS, ImageSet, read_image_set, train_remapper


@one_line_errors
def remapper(
    prior: Annotated[str, typer.Argument(help="A conditional prior: its name or file.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    data: Annotated[
        Path | None,
        typer.Option(help="The prior's training images, folder or zip. Default: its samples."),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Classes of the data, as for 'gifd prior train --labels'.")
    ] = "/",
    match: Annotated[str, typer.Option(help="Pattern of the data's file names.")] = "*",
    steps: Annotated[int, typer.Option(help="Steps of 64 images.", min=1)] = REMAPPER_STEPS,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=LAST_SEED)] = 0,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Train a classifier for a prior's classes, for 'gifd attack --label-mapping'."""
    check_ending(out)
    generator = catalog.prior(prior, offline=offline)
    if generator.classes is None:
        raise InputError(f"expected a conditional prior to map labels to, got {generator}")
    source: Generator | ImageSet = generator
    if data is not None:
        channels, side, _ = generator.image_shape
        source = read_image_set(data, size=side, channels=channels, match=match, labels=labels)
        if len(source.classes) != generator.classes:
            raise InputError(
                f"expected data of the {generator.classes} classes of {generator}, got "
                f"{len(source.classes)}"
            )
    with terminal.steps(f"remapper of {generator.name}", steps) as callback:
        found = train_remapper(
            source,
            steps=steps,
            seed=seed,
            name=out.stem,
            device=device_of(device),
            callback=callback,
        )
    write_remapper(found, out)
    terminal.tell(f"{out}: accuracy {found.accuracy:.0%} on held-out images")
