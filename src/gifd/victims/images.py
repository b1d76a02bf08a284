"""Private images from files: read, checked, resized the way the papers do."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gifd.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST = 16
"""Images with a shorter side below this many pixels are refused: there is nothing to invert."""


def read_image(path: str | Path, *, size: int = 64) -> Float[Tensor, "3 H W"]:
    """Read an image file as RGB in [0, 1], its centre square at `size` x `size` pixels.

    The shorter side is resized to `size` with antialiasing, then the centre is cropped.

    Raises:
        InputError: missing, not an image, corrupt, or too small.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = _rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise InputError(f"expected an image file at '{path}', found none") from None
    except (UnidentifiedImageError, IsADirectoryError):
        raise InputError(
            f"expected an image (PNG, JPEG, ...) at '{path}', got something else"
        ) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise InputError(f"expected a readable image at '{path}', got: {error}") from None
    if min(picture.size) < SMALLEST:
        raise InputError(
            f"expected an image of at least {SMALLEST} x {SMALLEST} pixels at '{path}', "
            f"got {picture.width} x {picture.height}"
        )
    square = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    array = np.asarray(square, dtype=np.float32) / 255.0  # (H, W, 3)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous()


def _rgb(picture: Image.Image) -> Image.Image:
    """Three channels of 8 bits; Pillow's own conversion cuts 16-bit greys off at 255."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode}: convert it to 8 or 16 bits a channel")
    return picture.convert("RGB")
