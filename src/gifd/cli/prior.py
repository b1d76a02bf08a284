"""`gifd prior`: list, fetch, inspect, convert and sample priors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog, terminal
from gifd.cli.options import LAST_SEED
from gifd.cli.remapper import remapper
from gifd.cli.score import score
from gifd.cli.train import train
from gifd.errors import InputError
from gifd.files import is_file
from gifd.images import grid, write_image
from gifd.priors import Generator, read_checkpoint, write_checkpoint
from gifd.terminal import one_line_errors
from gifd.weights import ShippedFile, local_path

prior_app = typer.Typer(
    help="Image priors: list, fetch, inspect, convert, sample, train, score.", no_args_is_help=True
)
prior_app.command("train")(train)
prior_app.command("score")(score)
prior_app.command("remapper")(remapper)


@prior_app.command("list")
@one_line_errors
def prior_list() -> None:
    """List the priors with their licences, and whether they are cached."""
    rows = []
    for name, prior in catalog.PRIORS.items():
        file = catalog.WEIGHTS[name]
        shipped = isinstance(file, ShippedFile)
        here = "shipped" if shipped else "yes" if is_file(local_path(file)) else "no"
        size = f"{file.size_bytes / 1e6:.0f} MB"
        rows.append((name, catalog.summary(prior), size, file.licence, here))
    for name, other in catalog.BY_HAND.items():
        rows.append((name, other.summary, other.size, other.licence, "by hand"))
    terminal.table("Priors", ("name", "what it is", "size", "licence", "here"), rows)


PriorName = Annotated[
    str, typer.Argument(help="From 'gifd prior list', a checkpoint file, or your own.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="key=value, an option of the prior; may be repeated."),
]


@prior_app.command("fetch")
@one_line_errors
def prior_fetch(name: PriorName) -> None:
    """Download a prior's weights into the cache and check them."""
    catalog.prior(name)
    if name not in catalog.WEIGHTS:
        raise InputError(f"expected a name from 'gifd prior list' to fetch, got the file '{name}'")
    terminal.tell(str(local_path(catalog.WEIGHTS[name])))


@prior_app.command("info")
@one_line_errors
def prior_info(name: PriorName, options: Options = None) -> None:
    """Show a prior's stages and the state after each."""
    generator = catalog.prior(name, options=options or ())
    title = repr(generator)
    if name in catalog.WEIGHTS:
        file = catalog.WEIGHTS[name]
        origin = "shipped"
        if not isinstance(file, ShippedFile):
            origin = f"{file.package} {file.version}"
        title = f"{name}: {file.note} ({origin}, {file.licence})"
    state = generator.draw(1, torch.Generator().manual_seed(0))
    rows = [("0", "latent", _shapes(state), "", _searched(generator, 0))]
    for depth, stage in enumerate(generator.stages, start=1):
        state = stage(state)
        count = sum(parameter.numel() for parameter in stage.parameters())
        rows.append(
            (str(depth), "stage", _shapes(state), f"{count:,}", _searched(generator, depth))
        )
    terminal.table(
        title,
        ("depth", "", "state after it", "parameters", "searched"),
        rows,
    )


@prior_app.command("sample")
@one_line_errors
def prior_sample(
    name: PriorName,
    options: Options = None,
    count: Annotated[int, typer.Option(help="Number of images.", min=1, max=400)] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the latents.", min=0, max=LAST_SEED)] = 0,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
) -> None:
    """Write a grid of a prior's samples as a PNG."""
    images = catalog.prior(name, options=options or ()).sample(count, seed)
    write_image(grid(images), out)
    terminal.tell(str(out))


@prior_app.command("convert")
@one_line_errors
def prior_convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint file or folder.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Convert a checkpoint to one safetensors file, which contains no code."""
    checkpoint = read_checkpoint(source)
    generator = checkpoint.generator(name=source.stem)
    write_checkpoint(checkpoint, target)
    terminal.tell(f"{target}: {checkpoint.architecture}, {generator}")


def _shapes(state: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{n}: {' x '.join(map(str, t.shape[1:]))}" for n, t in state.items())


def _searched(generator: Generator, depth: int) -> str:
    return ", ".join(generator.searchable(depth))
