"""Rounds: the files in which a server keeps what it sent and got, for `gifd invert`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gifd.tensor_files import write_tensors


def keep(
    state: Mapping[str, Tensor],
    folder: Path,
    number: int,
    name: str,
    numbers: Mapping[str, float] | None = None,
) -> None:
    """Write a state dict to `folder/round-<number>/<name>.safetensors`.

    Args:
        state: tensors by name; their order is kept.
        folder: of all rounds.
        number: of the round, as its framework counts.
        name: 'before' or 'client-<which>'.
        numbers: what the client reports of it, for the file's metadata.

    Raises:
        InputError: it cannot be written.
    """
    told = {key: str(value) for key, value in (numbers or {}).items()}
    path = folder / f"round-{number:03d}" / f"{name}.safetensors"
    write_tensors(state, {"gifd.order": "\n".join(state), **told}, path)
