"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from gifd.errors import InputError

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing.")]


def device_of(name: str) -> torch.device:
    """The device by name; auto takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"expected a usable device, got '{name}': {reason}") from None
    return device
