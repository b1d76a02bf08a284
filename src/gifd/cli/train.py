"""`gifd prior train`: train a prior on a folder of images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from gifd import terminal
from gifd.cli.options import LAST_SEED, Device, Offline, device_of
from gifd.terminal import one_line_errors
from gifd.training import Recipe, read_image_set, score, write_card
from gifd.training import train as run

_RECIPE = Recipe()


@one_line_errors
def train(
    data: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    images: Annotated[int, typer.Option(help="Total images to show.", min=1)] = 2_000_000,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this time; --resume continues.", min=0)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the state next to OUT.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Resize and crop to this side. Default: all equal already.")
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="One channel, for victims of grey images.")
    ] = False,
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Conditional: a regular expression whose group is the class, as in "
            "'class([0-9]+)'; '/' uses the folder names."
        ),
    ] = None,
    channel_base: Annotated[
        int, typer.Option(help="Channels at resolution r: channel_base / r ...")
    ] = _RECIPE.channel_base,
    channel_max: Annotated[int, typer.Option(help="... but at most this.")] = _RECIPE.channel_max,
    latent: Annotated[int, typer.Option(help="Size of z and w.")] = _RECIPE.latent,
    batch: Annotated[int, typer.Option(help="Images per step.")] = _RECIPE.batch,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = _RECIPE.lr,
    gamma: Annotated[
        float | None, typer.Option(help="Weight of R1. Default: 2e-4 size^2 / batch.")
    ] = _RECIPE.gamma,
    path_length: Annotated[
        float, typer.Option(help="Weight of the path length regulariser; the paper's is 2.")
    ] = _RECIPE.path_length,
    augment: Annotated[
        float, typer.Option(help="Target of adaptive augmentation; 0 for none.")
    ] = _RECIPE.augment,
    mirror: Annotated[bool, typer.Option(help="Mirror half of the images.")] = _RECIPE.mirror,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16. Default: bfloat16 on accelerators."),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Fuse with torch.compile: for long runs.")
    ] = _RECIPE.compile,
    seed: Annotated[
        int, typer.Option(help="Seed of all randomness.", min=0, max=LAST_SEED)
    ] = _RECIPE.seed,
    device: Device = "auto",
    save_every: Annotated[int, typer.Option(help="Images between two saves.", min=1)] = 50_000,
    score_samples: Annotated[
        int, typer.Option("--score", help="Samples to score at the end; 0 for none.", min=0)
    ] = 2000,
    licence: Annotated[
        str, typer.Option(help="Licence of the data, for the model card.")
    ] = "that of the data",
    offline: Offline = False,
) -> None:
    """Train your own prior on DATA: a StyleGAN2 for every attack with a prior."""
    where = device_of(device)
    if precision is None:
        precision = "float32" if where.type == "cpu" else "bfloat16"
    recipe = Recipe(
        channel_base=channel_base,
        channel_max=channel_max,
        latent=latent,
        batch=batch,
        lr=lr,
        gamma=gamma,
        path_length=path_length,
        augment=augment,
        mirror=mirror,
        precision=precision,
        compile=compile_,
        seed=seed,
    )
    learnt = read_image_set(data, size=size, channels=1 if grey else 3, match=match, labels=labels)
    with terminal.training(out.stem) as callback:
        trainer = run(
            learnt,
            recipe,
            out,
            images=images,
            minutes=minutes,
            save_every=save_every,
            resume=resume,
            device=where,
            callback=callback,
        )
    distance = score(trainer, score_samples, offline=offline) if score_samples else None
    command = f"gifd {shlex.join(sys.argv[1:])}"
    card = write_card(
        trainer, out, licence=licence, command=command, distance=distance, scored=score_samples
    )
    terminal.tell(f"{out}: {trainer.seen:,} images, card {card}")
