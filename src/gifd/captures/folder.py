"""Folder: the rounds of a federation as files, as `gifd invert` reads them.

`round-001/before.safetensors` holds the weights that the clients of a round received,
`round-001/client-<name>.safetensors` what a client returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gifd.tensor_files import write_tensors


def round_folder(folder: Path, number: int) -> Path:
    """The folder of a round, from 1."""
    return folder / f"round-{number:03d}"


def write_before(state: Mapping[str, Tensor], folder: Path, number: int) -> Path:
    """Keep the weights that the clients of a round received.

    Raises:
        InputError: the file cannot be written.
    """
    return _written(state, round_folder(folder, number) / "before.safetensors")


def write_returned(state: Mapping[str, Tensor], folder: Path, number: int, client: str) -> Path:
    """Keep what a client returned.

    Raises:
        InputError: the file cannot be written.
    """
    return _written(state, round_folder(folder, number) / f"client-{client}.safetensors")


def _written(state: Mapping[str, Tensor], path: Path) -> Path:
    write_tensors(state, {"gifd.order": "\n".join(state)}, path)
    return path
