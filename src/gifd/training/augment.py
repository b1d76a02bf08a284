"""Adaptive discriminator augmentation, against overfitting on small sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Augment:
    """Flips, shifts, scalings, rotations and colours, each with probability p for each image.

    The pipeline 'bgc' with its published strengths: mirror, quarter turns, shifts by whole pixels
    (up to 1/8), isotropic scaling `2^(0.2 n)`, rotation, anisotropic scaling, shifts by fractions
    (n / 8); brightness `0.2 n`, contrast `2^(0.5 n)`, luma flip, hue rotation, saturation `2^n`.

    Source: Karras et al., Training Generative Adversarial Networks with Limited Data, NeurIPS
    2020, Appendix B.

    Differs from the official code: images are resampled bilinearly with mirrored borders, without
    its wavelet filter.
    """

    def __call__(
        self, images: Float[Tensor, "B C H W"], p: float, rng: torch.Generator
    ) -> Float[Tensor, "B C H W"]:
        """Augment each image independently; differentiable. p = 0 changes nothing."""
        if p <= 0:
            return images
        return self._colours(self._places(images, p, rng), p, rng)

    def _places(self, images: Tensor, p: float, rng: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        draw = _Draws(count, p, rng, images.device)
        one = torch.ones(count, device=images.device)
        turn = math.pi * 2
        mirror = 1 - 2 * draw.maybe(draw.uniform().mul(2).floor())
        quarter = draw.maybe(draw.uniform().mul(4).floor()) * (turn / 4)
        whole = [
            draw.maybe((draw.uniform() * 2 - 1) / 8 * side).round() / side
            for side in (width, height)
        ]
        scale = torch.exp2(draw.maybe(draw.normal() * 0.2))
        half = 1 - math.sqrt(1 - p)  # of two rotations, so that one of them happens with p
        before = draw.maybe((draw.uniform() * 2 - 1) * math.pi, half)
        stretch = torch.exp2(draw.maybe(draw.normal() * 0.2))
        after = draw.maybe((draw.uniform() * 2 - 1) * math.pi, half)
        part = [draw.maybe(draw.normal() / 8) for _ in range(2)]
        # maps positions in the result to positions in the image, in [-1, 1]
        matrix = _scaling(mirror, one) @ _rotation(quarter) @ _shift(*whole)
        matrix = matrix @ _scaling(scale, scale) @ _rotation(before)
        matrix = matrix @ _scaling(stretch, 1 / stretch) @ _rotation(after) @ _shift(*part)
        where = F.affine_grid(matrix[:, :2], list(images.shape), align_corners=False)
        return F.grid_sample(
            images, where.to(images.dtype), padding_mode="reflection", align_corners=False
        )

    def _colours(self, images: Tensor, p: float, rng: torch.Generator) -> Tensor:
        count, channels = images.shape[:2]
        draw = _Draws(count, p, rng, images.device)
        brightness = draw.maybe(draw.normal() * 0.2)
        contrast = torch.exp2(draw.maybe(draw.normal() * 0.5))
        flip = draw.maybe(draw.uniform().mul(2).floor())
        hue = draw.maybe((draw.uniform() * 2 - 1) * math.pi)
        saturation = torch.exp2(draw.maybe(draw.normal()))
        if channels != 3:
            scale = (contrast * (1 - 2 * flip))[:, None, None, None]
            return images * scale + brightness[:, None, None, None]
        eye = torch.eye(3, device=images.device)
        luma = torch.full((3,), 1 / math.sqrt(3), device=images.device)
        along = torch.outer(luma, luma)  # keeps the luma of a colour
        cross = torch.tensor(
            [[0.0, -luma[2], luma[1]], [luma[2], 0.0, -luma[0]], [-luma[1], luma[0], 0.0]],
            device=images.device,
        )
        mirrored = eye - 2 * along * flip[:, None, None]
        cos, sin = hue.cos()[:, None, None], hue.sin()[:, None, None]
        turned = along + (eye - along) * cos + cross * sin
        faded = along + (eye - along) * saturation[:, None, None]
        matrix = faded @ turned @ mirrored * contrast[:, None, None]  # (B, 3, 3)
        offset = faded @ turned @ mirrored @ (brightness * contrast)[:, None, None].expand(-1, 3, 1)
        flat = matrix @ images.flatten(2) + offset
        return flat.reshape(images.shape)


class _Draws:
    """Random numbers, one per image, each used with a probability."""

    def __init__(self, count: int, p: float, rng: torch.Generator, device: torch.device) -> None:
        self.count, self.p, self.rng, self.device = count, p, rng, device

    def uniform(self) -> Tensor:
        return torch.rand(self.count, generator=self.rng, device=self.device)

    def normal(self) -> Tensor:
        return torch.randn(self.count, generator=self.rng, device=self.device)

    def maybe(self, values: Tensor, p: float | None = None) -> Tensor:
        """The values with probability p, else 0."""
        return values * (self.uniform() < (self.p if p is None else p))


def _scaling(x: Tensor, y: Tensor) -> Float[Tensor, "B 3 3"]:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _rotation(angle: Tensor) -> Float[Tensor, "B 3 3"]:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def _shift(x: Tensor, y: Tensor) -> Float[Tensor, "B 3 3"]:
    """By shares of the image's side, which is 2 long."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix([[one, zero, 2 * x], [zero, one, 2 * y], [zero, zero, one]])


def _matrix(rows: list[list[Tensor]]) -> Float[Tensor, "B 3 3"]:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Adapts p to overfitting: up if r is above its target, else down.

    `r = E[sign D(real)]`; p moves by `sign(r - target) * images / speed` after each `interval`
    batches.

    Args:
        target: of r.
        interval: batches between two changes.
        speed: images in which p can go from 0 to 1.
    """

    target: float = 0.6
    interval: int = 4
    speed: float = 500_000.0

    def __call__(self, p: float, r: float, images: int) -> float:
        """The next p, in [0, 1]."""
        return min(max(p + math.copysign(images / self.speed, r - self.target), 0.0), 1.0)
