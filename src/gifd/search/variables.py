"""Variables: what a phase searches, as one flat vector per search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.priors.generator import State


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """The positions of a state's searched tensors in a vector of M numbers.

    Optimisers and the best iterates then work on one tensor (N, R, M), whatever the space.

    Args:
        shapes: name -> shape of one search's tensor, in the vector's order.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, state: State, names: Sequence[str], axes: int = 2) -> Layout:
        """The layout of these tensors, whose first `axes` axes count the searches."""
        return cls(shapes={name: tuple(state[name].shape[axes:]) for name in names})

    @property
    def size(self) -> int:
        """M."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def pack(self, state: State) -> Float[Tensor, "*L M"]:
        """A state's searched tensors (*L, ...) as vectors."""
        parts = []
        for name, shape in self.shapes.items():
            leading = state[name].shape[: state[name].ndim - len(shape)]
            parts.append(state[name].reshape(*leading, math.prod(shape)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def unpack(self, x: Float[Tensor, "*L M"]) -> dict[str, Tensor]:
        """Vectors as named tensors (*L, ...)."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(x, sizes, -1)  # whose gradients come back in one piece
        return {
            name: part.reshape(*x.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
