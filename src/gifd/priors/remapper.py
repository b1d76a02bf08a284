"""Remapper: classifies images into the classes of a conditional prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gifd.errors import WeightsError, one_line
from gifd.priors.loading import load_weights
from gifd.tensor_files import read_metadata, read_tensors, require_finite, write_tensors

SIDE = 64
"""Larger images are averaged down to this before they are classified."""


class RemapperNet(nn.Module):
    """Four strided convolutions with group norm, so that single images can be classified.

    Args:
        classes: number of the prior's classes.
        colours: channels of its images.
        width: channels of the first convolution; they double three times.
    """

    def __init__(self, classes: int, *, colours: int = 3, width: int = 24) -> None:
        super().__init__()
        widths = [colours, *(width * 2**i for i in range(4))]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(width // 4 or 1, after) for after in widths[1:])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"]:
        """Images in [0, 1] -> logits of the prior's classes."""
        if max(x.shape[2:]) > SIDE:
            x = F.adaptive_avg_pool2d(x, SIDE)
        x = 2 * x - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(norm(conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@final
@dataclass(frozen=True, kw_only=True)
class Remapper:
    """A classifier for a prior's classes, and its accuracy.

    Args:
        net: maps images in [0, 1] to logits.
        classes: number of classes.
        accuracy: on held-out images, in [0, 1].
        name: for records.
    """

    net: nn.Module = field(repr=False)
    classes: int
    accuracy: float
    name: str

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B"]:
        """The likeliest class of each image in [0, 1], on the CPU."""
        logits: Tensor = self.net.cpu().eval()(images.detach().cpu())
        return logits.argmax(1)


def write_remapper(remapper: Remapper, path: Path) -> None:
    """Write a remapper as one safetensors file.

    Raises:
        InputError: another ending than .safetensors, or it cannot be written.
    """
    metadata = {"format": "gifd remapper", "accuracy": repr(remapper.accuracy)}
    write_tensors(remapper.net.state_dict(), metadata, path)


def read_remapper(path: Path) -> Remapper:
    """Read a remapper written by `write_remapper`.

    Raises:
        WeightsError: missing, damaged, or another kind of file.
    """
    tensors = read_tensors(path)
    metadata = read_metadata(path)
    if metadata.get("format") != "gifd remapper":
        raise WeightsError(
            f"{path}: expected a remapper written by 'gifd prior remapper', got another file"
        )
    try:
        width, colours = tensors["convs.0.weight"].shape[:2]
        (classes,) = tensors["head.bias"].shape
        accuracy = float(metadata["accuracy"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a complete remapper: {one_line(error)}") from None
    if not 0 <= accuracy <= 1:
        raise WeightsError(f"{path}: expected an accuracy in [0, 1], got {accuracy}")
    require_finite(tensors, path)
    build = partial(RemapperNet, classes, colours=colours, width=width)
    net = load_weights(build, tensors, "remapper")
    return Remapper(net=net, classes=classes, accuracy=accuracy, name=path.stem)
