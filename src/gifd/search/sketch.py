"""Sketch: an update as short vectors, one a parameter, whose inner products are nearly kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor


@final
class Sketch:
    """A fixed random linear map of updates.

    The gradient G of a weight (outputs, inputs, places) becomes `P G Q`, with random orthonormal
    rows P and columns Q. Independent noise keeps its standard deviation. A tensor with at most
    `MOST` numbers is kept as it is.

    Args:
        like: any update of the model.
        rng: draws the map.

    Source: Halko, Martinsson and Tropp, Finding Structure with Randomness, SIAM Review 2011.
    """

    MOST: ClassVar[int] = 8192
    """Numbers of a parameter, about."""

    def __init__(self, like: Mapping[str, Tensor], rng: torch.Generator) -> None:
        self._sides: dict[str, tuple[Tensor, Tensor]] = {}
        for name, tensor in like.items():
            if tensor.ndim < 2 or tensor.numel() <= self.MOST:
                continue
            outs, ins, places = *tensor.shape[:2], tensor[0, 0].numel()
            rows = max(1, min(outs, round((self.MOST / places) ** 0.5)))
            columns = max(1, min(ins, self.MOST // (places * rows)))
            rows = max(1, min(outs, self.MOST // (places * columns)))
            self._sides[name] = _rows(rows, outs, rng, tensor), _rows(columns, ins, rng, tensor)

    def __call__(self, update: Mapping[str, Tensor]) -> list[Float[Tensor, "_"]]:
        """The vectors, in the order of the parameters."""
        found = []
        for name, tensor in update.items():
            if name in self._sides:
                left, right = self._sides[name]
                places = tensor.reshape(*tensor.shape[:2], -1)
                tensor = torch.einsum("ro,oip,si->rsp", left, places, right)
            found.append(tensor.flatten())
        return found

    def sides(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """(P, Q) of a weight; None where it is kept as it is."""
        return self._sides.get(name, (None, None))


def _rows(count: int, size: int, rng: torch.Generator, like: Tensor) -> Float[Tensor, "K S"]:
    """Random orthonormal rows."""
    drawn = torch.randn(size, count, generator=rng, dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(drawn)[0].T.to(like)
    return rows
