"""Stand-ins: images of random shapes in the place of unknown private ones."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.leaves import dead_leaves

_SHAPES, _CONTRAST, _BRIGHTNESS = (3, 150), 1.0, 0.4


def stand_ins(
    count: int, image_shape: tuple[int, int, int], rng: torch.Generator
) -> Float[Tensor, "N C H W"]:
    """Dead leaves of few shapes or many, of random contrast and brightness, in [0, 1]."""
    few, many = math.log(_SHAPES[0]), math.log(_SHAPES[1])
    shapes = torch.empty(count).uniform_(few, many, generator=rng).exp().int().tolist()
    images = torch.cat([dead_leaves(1, image_shape, rng, each) for each in shapes])
    contrast = torch.empty(count, 1, 1, 1).uniform_(-1, 1, generator=rng).mul(_CONTRAST).exp()
    added = torch.empty(count, 1, 1, 1).uniform_(-_BRIGHTNESS, _BRIGHTNESS, generator=rng)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean + added).clamp(0, 1)
