"""Image files: read and check one, a folder or a zip; write PNGs."""

from __future__ import annotations

import fnmatch
import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gifd.depths import Depth
from gifd.errors import InputError, one_line
from gifd.files import BROKEN_ZIP, is_file, is_folder, read_member

SMALLEST = 16
"""Images with a shorter side below this number of pixels are refused."""

LARGEST_SIDE = 4096
"""The largest side to which images are resized."""

MOST_CLASSES = 1_000_000
"""Class numbers are below this."""

LARGEST = 1 << 28
"""The largest image in a zip, in bytes; larger ones are not unpacked."""

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"})
"""Endings of image files in a folder or zip."""


Told = Callable[[tuple[int, int]], object]
"""Called with the width and height of a file's image, before it is cropped and resized."""


def read_image(
    path: str | Path, *, size: int | None = 64, told: Told | None = None
) -> Float[Tensor, "3 H W"]:
    """Read an image file as RGB in [0, 1], its centre square at `size` x `size` pixels.

    The shorter side is resized to `size` with antialiasing, then the centre is cropped. More
    than 8 bits per channel are scaled to 8; white is the largest value of the file's depth.

    Args:
        path: the file.
        size: side of the square; None keeps the image as it is.
        told: see `Told`.

    Raises:
        InputError: missing, not an image, corrupt, too small, or of an unknown depth.
    """
    name = _quoted(path)
    if is_folder(path):
        raise InputError(f"expected an image (PNG, JPEG, ...) at {name}, got a folder")
    if not is_file(path):  # also refuses pipes and devices, which may be endless
        raise InputError(f"expected an image file at {name}, found none")
    try:
        with Path(path).open("rb") as file:
            return _decode(file, name, size, told)
    except OSError as error:
        raise InputError(f"expected a readable image at {name}, got: {one_line(error)}") from None


def read_images(
    source: str | Path,
    *,
    match: str = "*",
    limit: int | None = None,
    size: int | None = 64,
    told: Told | None = None,
) -> Iterator[tuple[str, Float[Tensor, "3 H W"]]]:
    """The images of a folder (with subfolders) or zip, sorted by name.

    Args:
        source: the folder or zip. Hidden files and files without an image's ending are skipped.
        match: shell pattern of the file names to use.
        limit: number of images, evenly spaced over those that match; None takes all.
        size: see `read_image`.
        told: see `Told`.

    Yields:
        The path inside the source, with `/` between its parts, and the image.

    Raises:
        InputError: no such folder or zip, no image in it, or one that `read_image` refuses.
    """
    source = Path(source)
    if is_folder(source):
        for name in _chosen(_walked(source), source, match, limit):
            yield name, read_image(source / name, size=size, told=told)
        return
    for name, content in _unzipped(source, match, limit):
        yield name, _decode(io.BytesIO(content), _quoted(f"{source}:{name}"), size, told)


def _walked(folder: Path) -> list[str]:
    """The files in a folder and its subfolders, except hidden ones."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"expected a folder whose folders can be read, got {_quoted(folder)}: {one_line(error)}"
        ) from None

    found = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(here) / name).relative_to(folder).as_posix() for name in files]
    return found


def _unzipped(source: Path, match: str, limit: int | None) -> Iterator[tuple[str, bytes]]:
    try:
        if not is_file(source):
            raise FileNotFoundError("there is no such file")
        with zipfile.ZipFile(source) as archive:
            for name in _chosen(archive.namelist(), source, match, limit):
                yield name, read_member(archive, name, LARGEST)
    except (OSError, *BROKEN_ZIP) as error:
        raise InputError(
            f"expected a folder or a zip of images, got {_quoted(source)}: {one_line(error)}"
        ) from None


def framing(sizes: Sequence[tuple[int, int]], size: int) -> str | None:
    """How many images of these sizes are cropped or enlarged, in a line; None if none is."""
    cropped = sum(width != height for width, height in sizes)
    upscaled = sum(min(side) < size for side in sizes)
    parts = [f"{cropped} of {len(sizes)} cropped to the centre square"] if cropped else []
    parts += [f"{upscaled} of {len(sizes)} enlarged to {size} x {size} pixels"] if upscaled else []
    return f"images: {', '.join(parts)}" if parts else None


def write_image(image: Float[Tensor, "C H W"], path: Path) -> None:
    """Write an image in [0, 1] as a PNG.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected to write a PNG to {_quoted(path)}, got: {one_line(error)}"
        ) from None


def png(image: Float[Tensor, "C H W"]) -> bytes:
    """An image in [0, 1] as a PNG of 8 bits."""
    array = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array).squeeze()).save(file, format="PNG")
    return file.getvalue()


def grid(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "C H2 W2"]:
    """The images in an approximately square sheet, with white for empty places."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    sheet = images.new_ones(channels, -(-count // columns) * height, columns * width)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def class_in(name: str, pattern: str) -> int:
    """The class number in a file's name: the first group of a regular expression.

    Raises:
        InputError: an invalid expression, or a name in which it does not find a number.
    """
    try:
        found = re.search(pattern, name)
        number = int(found.group(1)) if found else -1
    except (re.error, IndexError) as error:
        raise InputError(
            f"expected a regular expression with a group for the class, got "
            f"{_quoted(pattern)}: {one_line(error)}"
        ) from None
    except (ValueError, TypeError):  # an unmatched group is None
        raise InputError(
            f"expected a class number by {_quoted(pattern)} in {_quoted(name)}, got none"
        ) from None
    if not 0 <= number < MOST_CLASSES:
        raise InputError(
            f"expected a class number below {MOST_CLASSES:,} by {_quoted(pattern)} in "
            f"{_quoted(name)}, got {one_line(found[1], 40) if found else 'none'}"
        )
    return number


def _quoted(name: object) -> str:
    """A path or a name for an error, made safe and short."""
    return f"'{one_line(name, 200)}'"


def _chosen(names: list[str], source: Path, match: str, limit: int | None) -> list[str]:
    found = []
    for name in sorted(names):
        path = PurePosixPath(name)
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
        if path.suffix.lower() in ENDINGS and not hidden and fnmatch.fnmatch(path.name, match):
            found.append(name)
    if not found:
        what = "images" if match == "*" else f"images that match '{match}'"
        raise InputError(f"expected {what} in {_quoted(source)}, got none")
    count = len(found) if limit is None else min(limit, len(found))
    return [found[i] for i in np.linspace(0, len(found) - 1, count).round().astype(int)]


def open_picture(file: io.BufferedReader | io.BytesIO, name: str) -> Image.Image:
    """The image of a file as RGB, rotated as its EXIF data say.

    Raises:
        InputError: not an image, a damaged one, one with more pixels than Pillow considers safe,
            or one of an unknown depth.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. about damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                depth = Depth.of(opened)
                return depth.rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise InputError(
            f"expected an image (PNG, JPEG, ...) at {name}, got something else, "
            "or a format that Pillow does not read"
        ) from None
    except Exception as error:  # a damaged picture raises nearly every type
        raise InputError(f"expected a readable image at {name}, got: {one_line(error)}") from None


def _decode(
    file: io.BufferedReader | io.BytesIO, name: str, size: int | None, told: Told | None
) -> Float[Tensor, "3 H W"]:
    picture = open_picture(file, name)
    if min(picture.size) < SMALLEST:
        raise InputError(
            f"expected an image of at least {SMALLEST} x {SMALLEST} pixels at {name}, "
            f"got {picture.width} x {picture.height}"
        )
    if told is not None:
        told(picture.size)
    if size is not None:
        if not 1 <= size <= LARGEST_SIDE:
            raise InputError(f"expected a size of 1 to {LARGEST_SIDE} pixels, got {size}")
        picture = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    array = np.asarray(picture, dtype=np.float32) / 255.0  # (H, W, 3)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous()
