"""Choice: `torch.where` with a condition per search."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def chosen(taken: Bool[Tensor, "N R"], one: Tensor, other: Tensor | float) -> Tensor:
    """`one` for the searches in `taken`, `other` for the rest; both (N, R, ...).

    On a CPU, where reading a value is cheap, nothing is copied if all are taken.
    """
    if taken.device.type == "cpu" and bool(taken.all()):
        return one
    return torch.where(taken.reshape(*taken.shape, *[1] * (one.ndim - 2)), one, other)
