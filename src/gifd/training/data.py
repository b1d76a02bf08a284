"""ImageSet: training images in memory, with their labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from gifd.errors import InputError, one_line
from gifd.images import LARGEST_SIDE, read_images
from gifd.priors.sides import MULTIPLE


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Square images of one size and, for a conditional prior, their class indices.

    Args:
        images: (N, C, S, S) of bytes; S is a multiple of 4, from 8 on.
        labels: (N,) class indices, or None.
        classes: the name of each class index; empty without labels.
        source: for records.
        names: the path of each image in the source; empty if they are from no files.

    Raises:
        InputError: no image, another shape, or labels or names that do not fit.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    source: str = "images"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or 0 in shape:
            raise InputError(
                f"expected images as bytes (N, C, S, S), got {self.images.dtype} {shape}"
            )
        side = shape[-1]
        if shape[-2] != side or side < 8 or side % MULTIPLE:
            raise InputError(
                f"expected square images of 8, 12, 16, ... pixels, got {shape[-1]} x {shape[-2]}: "
                "give a size to resize them to"
            )
        if self.names and len(self.names) != shape[0]:
            raise InputError(f"expected a name for each of {shape[0]}, got {len(self.names)}")
        if self.labels is None:
            return
        if self.labels.shape != shape[:1] or self.labels.dtype != torch.int64:
            raise InputError(
                f"expected {shape[0]} labels as int64, got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(
                f"expected labels of 0 to {len(self.classes) - 1}, got "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """S, the side of each image in pixels."""
        return self.images.shape[-1]

    @property
    def colours(self) -> int:
        """C, the number of channels."""
        return self.images.shape[1]

    def batch(
        self, seen: int, count: int, seed: int
    ) -> tuple[Float[Tensor, "B C S S"], Tensor | None]:
        """The `count` images after the first `seen`, in [-1, 1], and their labels.

        Each epoch has its own order, from the seed and its number, so the position in training
        is one number.
        """
        indices: list[int] = []
        epoch, at = divmod(seen, len(self))
        while len(indices) < count:
            rng = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(len(self), generator=rng)[at : at + count - len(indices)]
            indices += order.tolist()
            epoch, at = epoch + 1, 0
        chosen = torch.tensor(indices)
        images = self.images[chosen].float() / 127.5 - 1
        return images, None if self.labels is None else self.labels[chosen]


def read_image_set(
    source: str | Path,
    *,
    size: int | None = None,
    channels: int = 3,
    match: str = "*",
    labels: str | None = None,
) -> ImageSet:
    """The images of a folder or zip.

    Args:
        source: the folder or zip.
        size: resize the shorter side to it and crop the centre; None requires images of equal
            size.
        channels: 3, or 1 for grey.
        match: shell pattern of the file names to use.
        labels: a regular expression whose first group, in the path inside the source, is the
            class (`class([0-9]+)`); '/' uses the folder of each image. None for an unconditional
            prior.

    Raises:
        InputError: nothing there, a corrupt image, mixed sizes, or a path without a class.
    """
    if size is not None and (not 8 <= size <= LARGEST_SIDE or size % MULTIPLE):
        raise InputError(
            f"expected a size of 8, 12, 16, ... {LARGEST_SIDE} pixels, got {one_line(size, 40)}"
        )
    pictures: list[Tensor] = []
    names: list[str] = []
    for name, picture in read_images(source, match=match, size=size, channels=channels):
        if pictures and picture.shape != pictures[0].shape:
            raise InputError(
                f"expected images of one size in '{source}', got {_size(pictures[0])} and "
                f"{_size(picture)} ('{name}'): give a size to resize them to"
            )
        pictures.append((picture * 255).round().byte())
        names.append(name)
    chosen, classes = _classes(names, labels) if labels is not None else (None, ())
    return ImageSet(
        images=torch.stack(pictures),
        labels=chosen,
        classes=classes,
        source=Path(source).name,
        names=tuple(names),
    )


def image_set(dataset: Iterable[Any] | Dataset[Any], *, source: str = "dataset") -> ImageSet:
    """An ImageSet from a torch Dataset of images (C, S, S), or of pairs (image, class index).

    Images are floats in [0, 1] or bytes.

    Raises:
        InputError: items of another kind, or of several sizes.
    """
    pictures: list[Tensor] = []
    labels: list[int] = []
    for item in _items(dataset):
        picture, label = item if isinstance(item, tuple | list) else (item, None)
        if not isinstance(picture, Tensor) or picture.ndim != 3:
            raise InputError(
                f"expected a dataset of image tensors (C, S, S), got {type(picture).__name__}"
            )
        if pictures and picture.shape != pictures[0].shape:
            raise InputError(
                f"expected images of one size, got {_size(pictures[0])} and {_size(picture)}"
            )
        if picture.is_floating_point():
            if picture.min() < 0 or picture.max() > 1:
                raise InputError("expected images with values in [0, 1], got values outside")
            picture = (picture * 255).round().byte()
        pictures.append(picture)
        if label is not None:
            labels.append(int(label))
    if not pictures:
        raise InputError("expected a dataset with images, got an empty one")
    if labels and len(labels) != len(pictures):
        raise InputError(f"expected a label for each of {len(pictures)}, got {len(labels)}")
    return ImageSet(
        images=torch.stack(pictures),
        labels=torch.tensor(labels) if labels else None,
        classes=tuple(str(i) for i in range(max(labels) + 1)) if labels else (),
        source=source,
    )


def _items(dataset: Any) -> Iterable[Any]:
    """The items; a Dataset of known length is indexed, since iterating it need not end."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[i] for i in range(len(dataset)))
    return dataset  # type: ignore[no-any-return]


def _classes(names: list[str], pattern: str) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices and sorted class names, numbers in numerical order."""
    try:
        expression = re.compile("([^/]+)/[^/]+$" if pattern == "/" else pattern)
    except re.error as error:
        raise InputError(
            f"expected a regular expression for labels, got '{pattern}': {one_line(error)}"
        ) from None
    if expression.groups < 1:
        raise InputError(
            f"expected a group in the expression for labels, as in 'class([0-9]+)', got '{pattern}'"
        )
    found = []
    for name in names:
        match = expression.search(name)
        if match is None or match[1] is None:
            raise InputError(f"expected a class in every path by '{pattern}', got none in '{name}'")
        found.append(match[1])
    distinct = sorted(set(found), key=_numbers_first)
    index = {name: i for i, name in enumerate(distinct)}
    return torch.tensor([index[name] for name in found]), tuple(distinct)


def _numbers_first(name: str) -> tuple[bool, int, str]:
    number = name.isdecimal()
    return not number, int(name) if number else 0, name


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"
