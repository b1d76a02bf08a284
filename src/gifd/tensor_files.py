"""Files of tensors: read without running code from them, written atomically."""

import argparse
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gifd.errors import InputError, WeightsError, one_line
from gifd.files import is_file

_MAX_DEPTH = 16  # of nested dicts; a pickle may even hold a dict that contains itself
_MOST_NAMES = 100_000


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name, on the CPU.

    A safetensors file is read as such, any other as a file of ``torch.save``, by PyTorch's
    restricted reader, which runs no code from the file. Nested dicts become dotted names. Values
    that are neither tensors nor dicts (an epoch, an optimiser's list) are dropped.

    Args:
        path: The file.

    Returns:
        Tensors without gradient, by dotted name, in the file's order.

    Raises:
        WeightsError: The file is missing, damaged, contains code or no tensor, or gives two
            tensors the same name.
    """
    return _named(_content(path), path)


def read_tensors_or_list(path: Path) -> dict[str, Tensor] | list[Tensor]:
    """The tensors of a weights file by name, or in order if `torch.save` wrote a list of them.

    Raises:
        WeightsError: as `read_tensors`.
    """
    content = _content(path)
    if isinstance(content, list | tuple) and all(isinstance(t, Tensor) for t in content):
        return [plain(str(place), tensor, path) for place, tensor in enumerate(content)]
    return _named(content, path)


def _named(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a file's content, by dotted name."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(content, path):
        if name in tensors:
            raise WeightsError(
                f"{path} names two tensors '{one_line(name, 80)}': rename one of them"
            )
        tensors[name] = plain(name, tensor, path)
    if not tensors:
        raise WeightsError(f"{path} contains no named tensor: expected a dict of tensors")
    return tensors


def plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    """A tensor from the file at `path`, detached.

    Raises:
        WeightsError: larger than the file (by its strides), or not a plain tensor.
    """
    told = f"{path}: expected plain tensors, got '{one_line(name, 80)}'"
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise WeightsError(f"{told} that is sparse, quantized or without numbers")
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise WeightsError(f"{told} of shape {tuple(tensor.shape)[:8]}, larger than the file")
    return tensor.detach()


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are empty, complex, or not finite in single precision.

    Raises:
        WeightsError: names the first of them.
    """
    for name, tensor in tensors.items():
        told = f"{path}: expected finite weights, got '{one_line(name, 80)}'"
        if not tensor.numel() or tensor.is_complex():
            raise WeightsError(f"{told} of shape {tuple(tensor.shape)[:8]} and {tensor.dtype}")
        wrong = int((~torch.isfinite(tensor.float())).sum())
        if wrong:
            raise WeightsError(f"{told} with {wrong:,} values of {tensor.numel():,} that are not")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file atomically.

    Raises:
        InputError: another ending than .safetensors, or it cannot be written.
    """
    check_ending(path)
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        part = path.with_suffix(".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"expected to write '{one_line(path, 200)}', got: {one_line(error)}"
        ) from None


def check_ending(path: Path) -> None:
    """Raise an `InputError` if a file to write does not end in .safetensors."""
    if path.suffix != ".safetensors":
        raise InputError(f"expected a file that ends in .safetensors, got '{one_line(path, 200)}'")


def load_torch(file: Path | io.BytesIO) -> object:
    """Read a file of `torch.save` by PyTorch's restricted reader, which runs no code from it.

    A damaged file can raise almost any type.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise zipfile.BadZipFile("its parts are packed, torch.save packs none")
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]):  # often saved with the weights
        content: object = torch.load(file, map_location="cpu", weights_only=True)
    return content


def _content(path: Path) -> object:
    """What a file holds.

    Raises:
        WeightsError: it is missing, damaged or contains code.
    """
    if not is_file(path):
        raise WeightsError(f"expected a weights file, found none at {path}: check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _load(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or contains more than tensors, so it was not loaded: "
            "expected a safetensors file or a state dict saved by torch.save"
        ) from error
    except Exception as error:  # torch's reader raises nearly every type
        raise WeightsError(
            f"{path} cannot be read as tensors ({one_line(error) or type(error).__name__}): "
            "expected a safetensors file or a state dict saved by torch.save"
        ) from error


def _load(path: Path) -> object:
    return load_file(path) if _is_safetensors(path) else load_torch(path)


def _is_safetensors(path: Path) -> bool:
    """By its ending, or by its beginning: the length of a JSON header, then the header."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _flat(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts with dotted names, in the file's order."""
    seen = 0
    ahead = [(content, "", 0)]
    while ahead:
        value, name, depth = ahead.pop()
        if isinstance(value, Tensor) and depth:
            yield name, value
        if not isinstance(value, dict):
            continue
        seen += len(value)  # counts a dict once for every name that it has
        if depth > _MAX_DEPTH or seen > _MOST_NAMES:
            raise WeightsError(
                f"{path} nests dicts more than {_MAX_DEPTH} deep or has more than "
                f"{_MOST_NAMES:,} names: expected a state dict"
            )
        inside = [
            (each, f"{name}.{key}" if name else f"{key}", depth + 1)
            for key, each in value.items()
            if isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**63)
        ]
        ahead += reversed(inside)
