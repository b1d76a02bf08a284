"""Regularisers: what an image should look like, whatever its update.

As in the papers' code they read the model's input, i.e. the normalised image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


class Regularizer(ABC):
    """A penalty on normalised images, its weight included."""

    @abstractmethod
    def __call__(self, inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The weighted penalty as a differentiable scalar."""


@final
@dataclass(frozen=True, kw_only=True)
class TotalVariation(Regularizer):
    """Anisotropic: `weight * (mean |x_(i+1,j) - x_(i,j)| + mean |x_(i,j+1) - x_(i,j)|)`.

    Source: Geiping et al., NeurIPS 2020, with the means of its published code.
    """

    weight: float

    def __call__(self, inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The weighted variation."""
        rows = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().mean()
        columns = (inputs[..., :, 1:] - inputs[..., :, :-1]).abs().mean()
        return self.weight * (rows + columns)


@final
@dataclass(frozen=True, kw_only=True)
class ImageNorm(Regularizer):
    """`weight * |x|_2 / (H W)`.

    Source: Yin et al., See through Gradients, CVPR 2021, as GIFD scales it.
    """

    weight: float

    def __call__(self, inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """The weighted norm."""
        height, width = inputs.shape[-2:]
        norm: Tensor = torch.linalg.vector_norm(inputs)
        return self.weight * norm / (height * width)
