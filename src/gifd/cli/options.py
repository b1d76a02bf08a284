"""Options that several commands share."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd.campaign.store import Store
from gifd.errors import InputError, one_line
from gifd.images import SMALLEST
from gifd.terminal import note

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
Protocol = Annotated[
    str,
    typer.Option(
        help="What the client computes: 'fedsgd', 'fedavg:lr=0.01,epochs=2,batch_size=8,"
        "optimizer=adam' ('gifd list'), or your own: 'file.py:object'."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]
LAST_SEED = 2**32 - 1
"""The largest seed that all libraries accept, and whose derived seeds fit 64 bits."""
Seed = Annotated[
    int, typer.Option(help="Seed of the attack and the defences.", min=0, max=LAST_SEED)
]
Steps = Annotated[int | None, typer.Option(help="Steps per restart, over all phases.", min=1)]
Victim = Annotated[
    str,
    typer.Option(
        help="From 'gifd list', or your own: 'package.module:object' or 'file.py:object'."
    ),
]
Classes = Annotated[int, typer.Option(help="Classes of a built-in victim.")]
VictimSeed = Annotated[
    int, typer.Option(help="Seed of a built-in victim's weights.", min=0, max=LAST_SEED)
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the results. Default: runs/<date and time>.")
]
Evaluations = Annotated[
    int | None,
    typer.Option(help="Budget: victim gradients over all restarts, instead of steps.", min=1),
]
Preset = Annotated[
    str,
    typer.Option(
        help="'paper' (the attack's own), 'gifd-paper' (as in GIFD's comparison) or "
        "'strongest' (with our extensions)."
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        help="From 'gifd prior list', a checkpoint file, or your own: 'file.py:object'. "
        "'none' for attacks that can do without. Default: faces64."
    ),
]
PriorOption = Annotated[
    list[str] | None,
    typer.Option(help="key=value, an option of the prior; may be repeated."),
]
PublicImages = Annotated[
    Path | None,
    typer.Option(
        help="Folder or zip of public images like the private ones, for 'ensemble' and 'lti' "
        "to learn from."
    ),
]
Restarts = Annotated[int | None, typer.Option(help="Number of parallel searches.", min=1)]


Shape = Annotated[
    str | None,
    typer.Option(
        help="Of the private images: channels, height and width (1,28,28), or height and width. "
        "Default: the victim's channels, 64 x 64."
    ),
]
FormerSize = Annotated[int | None, typer.Option("--size", hidden=True)]
"""The former name of `--shape` for squares, until 0.2."""


def shape_of(
    text: str | None, size: int | None = None, smallest: int = SMALLEST
) -> tuple[int | None, int, int]:
    """The channels, if given, height and width of `Shape`, or of its former name.

    Raises:
        InputError: not two or three numbers above 0, or smaller images than are read.
    """
    if text is None:
        text = "64,64" if size is None else f"{size},{size}"
    parts = text.split(",")
    if len(parts) not in (2, 3) or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise InputError(
            "expected --shape as height and width, or channels, height and width, such as 3,64,64, "
            f"got '{one_line(text, 40)}'"
        )
    *channels, height, width = map(int, parts)
    if min(height, width) < smallest:
        raise InputError(f"expected --shape of at least {smallest} x {smallest} pixels, got {text}")
    return channels[0] if channels else None, height, width


def folder_at(out: Path | None) -> Path:
    """The folder that `Out` names."""
    return out or Path("runs") / datetime.now().strftime("%Y-%m-%d-%H%M%S")


def store_at(out: Path | None) -> Store:
    """The store in that folder."""
    return Store(folder_at(out))


MaxMemory = Annotated[
    float | None,
    typer.Option(
        help="GiB of an accelerator's memory: where clients need more, fewer go at once.",
        min=0.1,
    ),
]


def device_of(name: str, gib: float | None = None) -> torch.device:
    """The device by name, its memory limited; auto takes a GPU where there is one.

    On CUDA convolutions are computed in float32: the TF32 that PyTorch allows them by default
    rounds a gradient to three figures.
    """
    device = _device(name)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    _limit_memory(device, gib)
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if (torch.zeros(1, device=device) + 1).tolist() != [1.0]:  # 'meta' holds no numbers
            raise RuntimeError("it does not compute")
    except Exception as error:  # each missing backend raises its own type
        raise InputError(
            f"expected a usable device (cpu, cuda, cuda:1, mps), got '{one_line(name, 40)}': "
            f"{one_line(error)}"
        ) from None
    return device


def _limit_memory(device: torch.device, gib: float | None) -> None:
    """Let PyTorch allocate no more than this, or say that there is nothing to limit.

    Raises:
        InputError: more than the device has.
    """
    if gib is None:
        return
    if device.type != "cuda":
        note(f"--max-memory not used: on {device.type} clients are attacked one by one")
        return
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    if gib > total:
        raise InputError(f"expected at most the device's {total:.1f} GiB of memory, got {gib:g}")
    torch.cuda.set_per_process_memory_fraction(gib / total, device)
