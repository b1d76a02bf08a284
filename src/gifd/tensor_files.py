"""Files of tensors: read without running code of their author, written whole or not at all."""

import argparse
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gifd.errors import InputError, WeightsError, one_line

_MAX_DEPTH = 16  # of nested dicts; a pickle may even hold a dict that contains itself


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name, on the CPU.

    A ``.safetensors`` file is read as such; every other file as what ``torch.save`` writes, by
    PyTorch's restricted reader, which refuses to call anything of the file's own. Nested dicts
    become dotted names. Values that are neither tensors nor dicts (an epoch, an optimiser's
    list) are dropped.

    Args:
        path: The file.

    Returns:
        Tensors without gradient, by dotted name, in the file's order.

    Raises:
        WeightsError: The file is missing, damaged, asks for code to be run, holds no tensor, or
            gives two tensors one name.
    """
    if not path.is_file():
        raise WeightsError(f"expected a weights file, found none at {path}: check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _load(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors, so it was not loaded: "
            "expected a safetensors file or a state dict saved by torch.save"
        ) from error
    except Exception as error:  # torch's reader raises nearly every type
        raise WeightsError(
            f"{path} cannot be read as tensors ({one_line(error) or type(error).__name__}): "
            "expected a safetensors file or a state dict saved by torch.save"
        ) from error
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(content, path):
        if name in tensors:
            raise WeightsError(f"{path} names two tensors {name!r}: rename one of them")
        tensors[name] = tensor.detach()
    if not tensors:
        raise WeightsError(f"{path} holds no tensor by name: expected a dict of tensors")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file that `read_tensors` reads says of itself; other files say nothing."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write one safetensors file, whole or not at all.

    Raises:
        InputError: another ending than .safetensors, or it cannot be written.
    """
    check_ending(path)
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"expected to write '{path}', got: {error}") from None


def check_ending(path: Path) -> None:
    """Raise an `InputError` where a file to write is not named as a safetensors file."""
    if path.suffix != ".safetensors":
        raise InputError(f"expected a file that ends in .safetensors, got '{path}'")


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # training codes add their options
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _flat(
    content: Any, path: Path, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts under dotted names."""
    if depth > _MAX_DEPTH:
        raise WeightsError(f"{path} nests dicts more than {_MAX_DEPTH} deep: expected a state dict")
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _flat(value, path, f"{prefix}{key}.", depth + 1)
