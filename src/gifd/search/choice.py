"""Choice: one of two tensors, search by search."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def chosen(taken: Bool[Tensor, "N R"], one: Tensor, other: Tensor | float) -> Tensor:
    """Where a search is taken `one`, elsewhere `other`; both (N, R, ...).

    On a CPU, where a look costs nothing, nothing is copied if all are taken.
    """
    if taken.device.type == "cpu" and bool(taken.all()):
        return one
    return torch.where(taken.reshape(*taken.shape, *[1] * (one.ndim - 2)), one, other)
