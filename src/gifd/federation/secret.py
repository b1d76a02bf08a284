"""Secret: the private batch. It stays with the client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Secret:
    """The private batch. Clients create it and metrics read it; attacks never get it.

    Args:
        images: (B, C, H, W) in [0, 1].
        labels: class indices (B,), or what else the loss takes (B, ...).

    Raises:
        InputError: wrong shapes, or images outside [0, 1].
    """

    images: Float[Tensor, "..."]
    labels: Shaped[Tensor, "..."]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.numel() == 0 or labels.shape[:1] != images.shape[:1]:
            raise InputError(
                "expected images (B, C, H, W) and one label each, got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if not bool(torch.isfinite(images).all()) or images.min() < 0 or images.max() > 1:
            raise InputError("expected images with values in [0, 1], got values outside")
