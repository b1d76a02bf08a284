"""Files: updates and weights as other tools write them, read without running code from them."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from gifd.captures.capture import Arrays, Capture, at_weights, from_arrays
from gifd.captures.names import renamed
from gifd.errors import UpdateError, WeightsError, one_line
from gifd.files import BROKEN_ZIP, is_file
from gifd.model import Model
from gifd.tensor_files import read_tensors_or_list

_ROOM = 4
"""How many times the model's numbers, in float64, an archive may hold."""


def read_capture(path: Path, model: Model, *, hidden: Collection[str] = ()) -> Capture:
    """An update from a file of safetensors, NumPy (`.npz`), or `torch.save`.

    It may hold a gradient, a weight delta or whole weights, by name or in the model's order
    (`from_arrays`); a checkpoint's other tensors are left out.

    Args:
        path: of the file.
        model: that of the federation.
        hidden: parameters that the client does not send, or sends encrypted.

    Raises:
        UpdateError: no such file, a damaged one, or one that does not fit the model.
    """
    try:
        return from_arrays(_inner(_read(path, model), model, hidden), model, hidden=hidden)
    except WeightsError as error:
        raise UpdateError(str(error)) from None


def read_weights(
    path: Path, model: Model, *, hidden: Collection[str] = ()
) -> tuple[Model, tuple[str, ...]]:
    """The model with the weights and buffers of a file, in one of the same formats.

    Args:
        path: of the file.
        model: that of the federation.
        hidden: parameters that may miss (`at_weights`).

    Returns:
        it, and what was done to make them fit, a sentence each.

    Raises:
        WeightsError: no such file, a damaged one, or one that does not fit the model.
    """
    try:
        return at_weights(_inner(_read(path, model), model, hidden), model, hidden=hidden)
    except UpdateError as error:
        raise WeightsError(f"{one_line(path, 200)}: {error}") from None


def _read(path: Path, model: Model) -> Arrays:
    """All tensors of a file."""
    if not is_file(path):
        raise WeightsError(
            f"expected a file of tensors, found none at '{one_line(path, 200)}': check the path"
        )
    if path.suffix == ".npz":
        return _arrays(path, model)
    return read_tensors_or_list(path)


def _arrays(path: Path, model: Model) -> Arrays:
    """The arrays of NumPy's archive: a list if NumPy has named them, else by name."""
    most = 8 * _ROOM * sum(t.numel() for t in model.module.state_dict().values()) + 2**20
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > most:
            raise zipfile.BadZipFile(f"it holds {size:,} bytes, more than the model's weights")
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (*BROKEN_ZIP, OSError) as error:
        raise WeightsError(
            f"expected arrays of numbers in '{one_line(path, 200)}', got: {one_line(error)}"
        ) from None
    if not found:
        raise WeightsError(f"expected arrays in '{one_line(path, 200)}', got none")
    numbered = [f"arr_{place}" for place in range(len(found))]
    return [found[name] for name in numbered] if set(numbered) == set(found) else found


def _inner(arrays: Arrays, model: Model, hidden: Collection[str] = ()) -> Arrays:
    """Of a checkpoint that holds more, the part that has all trained parameters."""
    if not isinstance(arrays, Mapping):
        return arrays
    trained = set(model.parameters) - set(hidden)
    known = {*model.parameters, *model.buffers}
    if trained <= set(renamed(arrays, known)[0]):
        return arrays
    for depth in (1, 2):
        for prefix in dict.fromkeys(".".join(n.split(".")[:depth]) + "." for n in arrays):
            part = {name: array for name, array in arrays.items() if name.startswith(prefix)}
            if part and trained <= set(renamed(part, known)[0]):
                return part
    return arrays
