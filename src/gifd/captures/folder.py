"""Folder: the rounds of a federation as files, as `gifd invert` reads them.

`round-001/before.safetensors` holds the weights that the clients of a round received,
`round-001/client-<name>.safetensors` what a client returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gifd.tensor_files import write_tensors

BEFORE, CLIENT = "before", "client-"
"""Beginnings of the files' names."""


def round_folder(folder: Path, number: int) -> Path:
    """The folder of a round, by the number that its framework gives it."""
    return folder / f"round-{number:03d}"


def write_before(
    state: Mapping[str, Tensor], folder: Path, number: int, *, client: str | None = None
) -> Path:
    """Keep the weights that the clients of a round received.

    Args:
        state: tensors by name; their order is kept.
        folder: of all rounds.
        number: of the round.
        client: the only one that received these; None: all did.

    Raises:
        InputError: the file cannot be written.
    """
    name = BEFORE if client is None else f"{BEFORE}-{client}"
    return _written(state, round_folder(folder, number) / f"{name}.safetensors", {})


def write_returned(
    state: Mapping[str, Tensor],
    folder: Path,
    number: int,
    client: str,
    *,
    numbers: Mapping[str, float] | None = None,
) -> Path:
    """Keep what a client returned.

    Args:
        state: tensors by name; their order is kept.
        folder: of all rounds.
        number: of the round.
        client: its name.
        numbers: what it reports of its update, for the file's metadata.

    Raises:
        InputError: the file cannot be written.
    """
    path = round_folder(folder, number) / f"{CLIENT}{client}.safetensors"
    return _written(state, path, {key: str(value) for key, value in (numbers or {}).items()})


def _written(state: Mapping[str, Tensor], path: Path, told: Mapping[str, str]) -> Path:
    write_tensors(state, {"gifd.order": "\n".join(state), **told}, path)
    return path
