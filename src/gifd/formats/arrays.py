"""Arrays: images in NumPy's own files."""

from __future__ import annotations

import io
import math

import numpy as np

from gifd.errors import GifdError, InputError, one_line
from gifd.formats.picture import Picture

MOST_CHANNELS = 16
"""An axis shorter than this is that of the channels."""
DIM = 0.25
"""Integers that fill less than this share of their type's range are probably of a smaller type."""


def read_array(file: io.BufferedReader | io.BytesIO, name: str) -> Picture:
    """The image in an `.npy`: (H, W), (H, W, C) or (C, H, W), with C = 1 or 3.

    Integers are scaled by the range of their type, floats must be in [0, 1]. Nothing is unpickled.

    Raises:
        InputError: no array, another shape, or values that are not those of an image.
    """
    try:
        return Picture.of(_scaled(_upright(_loaded(file), name), name))
    except GifdError:
        raise
    except Exception as error:  # of a damaged file
        raise InputError(f"expected an array at {name}, got: {one_line(error)}") from None


def _loaded(file: io.BufferedReader | io.BytesIO) -> np.ndarray:
    """The array; one that is larger than its file is not begun."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of version {version}")
    header = f"read_array_header_{version[0]}_0"
    shape, _, dtype = getattr(np.lib.format, header)(file)
    begin = file.tell()
    if math.prod(shape) * dtype.itemsize > file.seek(0, io.SEEK_END) - begin:
        raise ValueError("an array that is cut short")
    file.seek(0)
    found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _upright(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W) or (H, W, 3)."""
    pixels = array
    if array.ndim == 3 and array.shape[0] < MOST_CHANNELS <= array.shape[2]:
        pixels = np.moveaxis(array, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3):
        return pixels
    raise InputError(
        f"expected an image (H, W), (H, W, C) or (C, H, W) with C = 1 or 3 at {name}, got an array "
        f"of shape {array.shape}"
    )


def _scaled(pixels: np.ndarray, name: str) -> np.ndarray:
    """In [0, 1]."""
    if not pixels.size:
        raise InputError(f"expected an image at {name}, got an empty array")
    if pixels.dtype.kind == "b":
        return pixels.astype(np.float32)
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"expected floats in [0, 1] at {name}, got {low:.4g} to {high:.4g}: rescale them"
            )
        return pixels
    if pixels.dtype.kind not in "iu":
        raise InputError(f"expected integers or floats at {name}, got {pixels.dtype}")
    kind = np.iinfo(pixels.dtype)
    low, high, span = int(pixels.min()), int(pixels.max()), int(kind.max) - int(kind.min)
    if kind.bits > 8 and 0 < high - (low if kind.min else 0) < DIM * span:
        raise InputError(
            f"expected integers that fill the range of {pixels.dtype} at {name}, got "
            f"{low} to {high}: divide by the value of white and save "
            "floats in [0, 1], or use a smaller type"
        )
    return (pixels.astype(np.float64) - kind.min) / span
