"""Decoder: images from an activation of the victim, by a linear map learnt on other images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RIDGES = torch.logspace(-8, 0, 9, dtype=torch.float64)
"""Candidate ridge parameters, as multiples of the mean square of the inputs."""
AROUND = 1
"""Neighbours in each direction that a cell is decoded from."""
AT_ONCE = 16


@final
@dataclass(frozen=True, eq=False)
class Decoder:
    """`image = weight * activation + offset`, cell by cell.

    An activation (C, h, w) has one cell of pixels for each position, which is decoded from this
    position and its neighbours. One without positions, (F,), is decoded into the whole image.

    Args:
        weight: (inputs, outputs), the last input is constant.
        shape: (C, H, W) of the images.
    """

    weight: Float[Tensor, "I O"]
    shape: tuple[int, int, int]

    @classmethod
    def fit(
        cls,
        images: Float[Tensor, "N C H W"],
        activations: Callable[[Tensor], Tensor],
    ) -> Decoder:
        """Ridge regression in one pass; the strength is chosen on the first fifth of the images.

        Args:
            images: to learn from.
            activations: of some of them.
        """
        held_out = len(images) // 5
        learnt, held = images[held_out:], images[:held_out]
        fitted, checked = _sums(learnt, activations), _sums(held, activations)
        powers, basis = torch.linalg.eigh(fitted[0])
        seen = basis.T @ fitted[1]

        def weight(ridge: Tensor) -> Tensor:
            found: Tensor = basis @ (seen / (powers + ridge * powers.mean())[:, None])
            return found

        def error(ridge: Tensor) -> float:
            tried = weight(ridge)
            return float(((checked[0] @ tried - 2 * checked[1]) * tried).sum())

        best = min(RIDGES.to(powers.device), key=error)
        channels, height, width = images.shape[1:]
        return cls(weight(best).to(images.dtype), (channels, height, width))

    def __call__(self, activation: Float[Tensor, "B *S"]) -> Float[Tensor, "B C H W"]:
        """The images in [0, 1]."""
        cells = _inputs(activation.to(self.weight)) @ self.weight  # (B, cells, pixels)
        if activation.ndim != 4:
            return cells.view(-1, *self.shape).clamp(0, 1)
        sides = _sides(activation, self.shape)
        return F.fold(cells.mT, self.shape[1:], sides, stride=sides).clamp(0, 1)


def decodable(activation: Tensor, shape: Iterable[int]) -> bool:
    """Whether it has a row for each image (B, C, H, W), and whole numbers of pixels a position."""
    batch, _, height, width = shape
    if len(activation) != batch:
        return False
    if activation.ndim == 2:
        return True
    if activation.ndim != 4:
        return False
    return height % activation.shape[2] == 0 == width % activation.shape[3]


def _sides(activation: Tensor, shape: tuple[int, int, int]) -> tuple[int, int]:
    return shape[1] // activation.shape[2], shape[2] // activation.shape[3]


def _inputs(activation: Tensor) -> Float[Tensor, "B cells inputs"]:
    if activation.ndim == 4:
        seen = F.unfold(activation, 2 * AROUND + 1, padding=AROUND).mT
    else:
        seen = activation[:, None]
    return torch.cat([seen, seen.new_ones(*seen.shape[:2], 1)], 2)


def _sums(images: Tensor, activations: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """`X^T X` and `X^T Y` over all cells of all images, float64."""
    totals: tuple[Tensor, Tensor] | None = None
    for part in torch.split(images, AT_ONCE):
        fed = activations(part)
        channels, height, width = part.shape[1:]
        shape = (channels, height, width)
        inputs = _inputs(fed).flatten(0, 1)
        if fed.ndim == 4:
            sides = _sides(fed, shape)
            outputs = F.unfold(part, sides, stride=sides).mT.flatten(0, 1)
        else:
            outputs = part.flatten(1)
        squares, products = (inputs.T @ inputs).double(), (inputs.T @ outputs).double()
        if totals is not None:
            squares, products = totals[0] + squares, totals[1] + products
        totals = squares, products
    assert totals is not None
    return totals
