"""Keeping: the iterate of each search that is its result so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gifd.search.choice import chosen
from gifd.search.phase import Keeps
from gifd.search.step import Seen


class Kept(NamedTuple):
    """An iterate (N, R, M) of each search and its distance (N, R); infinite if none yet."""

    x: Tensor
    distance: Tensor

    @classmethod
    def nothing(cls, x: Tensor) -> Kept:
        """The value before the first evaluation."""
        return cls(x, x.new_full(x.shape[:2], torch.inf))

    def after(self, seen: Seen, keeps: Keeps) -> Kept:
        """The better of this and the new iterate, or just the new one; only if it is finite."""
        taken = seen.finite
        if keeps == "best":
            taken = taken & (seen.distance < self.distance)
        distance = chosen(taken, seen.distance, self.distance)
        return Kept(chosen(taken, seen.x, self.x), distance)
