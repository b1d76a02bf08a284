"""Dead leaves: random images with the statistics of photographs, made of nothing but shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SHAPES = 120


def dead_leaves(
    count: int, shape: Sequence[int], rng: torch.Generator, shapes: int = SHAPES
) -> Float[Tensor, "N C H W"]:
    """Images in [0, 1] of ellipses that cover each other, each with a colour and a slight shading.

    Like photographs they have edges, smooth regions and no preferred scale, so what is learnt from
    them about a victim holds for photographs.

    Args:
        count: N.
        shape: (C, H, W).
        rng: source of all randomness.
        shapes: ellipses in an image.

    Source: Lee, Mumford and Huang, Occlusion Models for Natural Images, IJCV 2001. Baradad et
    al., Learning to See by Looking at Noise, NeurIPS 2021, train networks on such images.
    """
    channels, height, width = shape
    side = min(height, width)

    def uniform(*size: int) -> Tensor:
        return torch.rand(count, *size, generator=rng)

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = uniform(channels, 1, 1).expand(count, channels, height, width)
    for _ in range(shapes):
        radius = side / 32 * 15 ** uniform(1, 1)
        angle, stretch = math.pi * uniform(1, 1), 2 ** (2 * uniform(1, 1) - 1)
        down, right = y - height * uniform(1, 1), x - width * uniform(1, 1)
        along = right * angle.cos() + down * angle.sin()
        across = down * angle.cos() - right * angle.sin()
        inside = (along / stretch) ** 2 + (across * stretch) ** 2 < radius**2
        shading = 0.64 / side * torch.randn(count, channels, 1, 1, generator=rng)
        colour = uniform(channels, 1, 1) + shading * along[:, None]
        images = torch.where(inside[:, None], colour, images)
    return images.clamp(0, 1)
