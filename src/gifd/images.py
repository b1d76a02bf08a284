"""Image files: read and check one, a folder or a zip; write PNGs."""

from __future__ import annotations

import fnmatch
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gifd.errors import InputError, one_line
from gifd.files import BROKEN_ZIP, is_file, is_folder, read_member
from gifd.formats import ENDINGS, read_picture

SMALLEST = 16
"""Images with a shorter side below this number of pixels are refused."""

LARGEST_SIDE = 4096
"""The largest side to which images are resized."""

MOST_CLASSES = 1_000_000
"""Class numbers are below this."""

LARGEST = 1 << 28
"""The largest image in a zip, in bytes; larger ones are not unpacked."""

Told = Callable[[tuple[int, int]], object]
"""Called with the width and height of a file's image, before it is cropped and resized."""


Size = int | tuple[int, int]
"""The side of a square, or height and width, in pixels."""


def read_image(
    path: str | Path, *, size: Size | None = 64, channels: int = 3, told: Told | None = None
) -> Float[Tensor, "C H W"]:
    """Read an image file in [0, 1], at the full depth of the file.

    The image is resized with antialiasing so that it covers the size, then its centre is cropped.
    The formats are those of `gifd.formats`: what Pillow reads, `.npy` and `.dcm`.

    Args:
        path: the file.
        size: a square's side, or height and width; None keeps the image as it is.
        channels: 3, or 1 for grey.
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
            return _decode(file, name, str(path), size, channels, told)
    except OSError as error:
        raise InputError(f"expected a readable image at {name}, got: {one_line(error)}") from None


def read_images(
    source: str | Path,
    *,
    match: str = "*",
    limit: int | None = None,
    size: Size | None = 64,
    channels: int = 3,
    told: Told | None = None,
) -> Iterator[tuple[str, Float[Tensor, "C H W"]]]:
    """The images of a folder (with subfolders) or zip, sorted by name.

    Args:
        source: the folder or zip. Hidden files and files without an image's ending are skipped.
        match: shell pattern of the file names to use.
        limit: number of images, evenly spaced over those that match; None takes all.
        size: see `read_image`.
        channels: likewise.
        told: see `Told`.

    Yields:
        The path inside the source, with `/` between its parts, and the image.

    Raises:
        InputError: no such folder or zip, no image in it, or one that `read_image` refuses.
    """
    source = Path(source)
    if is_folder(source):
        for name in _chosen(_walked(source), source, match, limit):
            yield name, read_image(source / name, size=size, channels=channels, told=told)
        return
    for name, content in _unzipped(source, match, limit):
        whole = _quoted(f"{source}:{name}")
        yield name, _decode(io.BytesIO(content), whole, name, size, channels, told)


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


def framing(sizes: Sequence[tuple[int, int]], size: Size) -> str | None:
    """How many images of these sizes are cropped or enlarged, in a line; None if none is."""
    high, wide = sides(size)
    cropped = sum(width * high != height * wide for width, height in sizes)
    upscaled = sum(width < wide or height < high for width, height in sizes)
    shape = "square" if high == wide else f"of {high} : {wide}"
    parts = [f"{cropped} of {len(sizes)} cropped to the centre {shape}"] if cropped else []
    parts += [f"{upscaled} of {len(sizes)} enlarged to {high} x {wide} pixels"] if upscaled else []
    return f"images: {', '.join(parts)}" if parts else None


def sides(size: Size) -> tuple[int, int]:
    """Height and width.

    Raises:
        InputError: one is below 1, or larger than `LARGEST_SIDE`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise InputError(
            f"expected images of 1 to at most {LARGEST_SIDE} pixels a side, got "
            f"{one_line(height, 40)} x {one_line(width, 40)}"
        )
    return height, width


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


def _decode(
    file: io.BufferedReader | io.BytesIO,
    name: str,
    path: str,
    size: Size | None,
    channels: int,
    told: Told | None,
) -> Float[Tensor, "C H W"]:
    if channels not in (1, 3):
        raise InputError(f"expected images of 1 or 3 channels, got {channels}")
    picture = read_picture(file, name, path)
    if min(picture.size) < SMALLEST:
        width, height = picture.size
        raise InputError(
            f"expected an image of at least {SMALLEST} x {SMALLEST} pixels at {name}, "
            f"got {width} x {height}"
        )
    if told is not None:
        told(picture.size)
    picture = picture.grey() if channels == 1 else picture.coloured()
    return (picture if size is None else picture.fitted(*sides(size))).tensor()
