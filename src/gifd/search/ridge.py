"""Ridge regression with the ridge parameter chosen by leave-one-out cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError

STRENGTHS = torch.logspace(-4, 4, 33, dtype=torch.float64)
"""Candidate ridge parameters, as multiples of the mean squared singular value of the inputs."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """`y = mean_y + (x - mean_x) / std_x @ weight`, fitted by regularised least squares.

    With Z the standardised inputs, `weight = argmin |Z w - (Y - mean_y)|^2 + s |w|^2`. The s with
    the least leave-one-out error is chosen, in closed form: the error at example i is its
    residual over `1 - h_i`, with leverage h_i.

    Args:
        mean, std: of the inputs, (F,).
        weight: (F, T).
        offset: mean of the outputs, (T,).
        error: mean squared leave-one-out error.
        strength: the chosen s.

    Source: Allen, The Relationship between Variable Selection and Data Augmentation and a
    Method for Prediction, Technometrics 1974 (PRESS).
    """

    mean: Float[Tensor, "F"]
    std: Float[Tensor, "F"]
    weight: Float[Tensor, "F T"]
    offset: Float[Tensor, "T"]
    error: float
    strength: float

    @classmethod
    def fit(cls, inputs: Float[Tensor, "N F"], outputs: Float[Tensor, "N T"]) -> Ridge:
        """Fit N examples, on the CPU in float64.

        Raises:
            InputError: fewer than three examples.
        """
        if len(inputs) < 3:
            raise InputError(f"expected at least 3 examples, got {len(inputs)}")
        x, y = inputs.detach().cpu().double(), outputs.detach().cpu().double()
        mean, offset = x.mean(0), y.mean(0)
        std = x.std(0, correction=0)
        std = torch.where(std > 1e-12 * std.max(), std, torch.inf)  # ignore constant inputs
        left, sizes, right = torch.linalg.svd((x - mean) / std, full_matrices=False)
        squares = sizes.square()
        seen = left.T @ (y - offset)  # (K, T)

        def filtered(strength: Tensor) -> tuple[float, Tensor]:
            kept = squares / (squares + strength)
            residual = y - offset - left @ (kept[:, None] * seen)
            leverage = left.square() @ kept + 1 / len(x)
            return float((residual / (1 - leverage).clamp_min(1e-6)[:, None]).square().mean()), kept

        strengths = (STRENGTHS * squares.mean()).clamp_min(1e-30)
        errors = [filtered(strength)[0] for strength in strengths]
        best = strengths[min(range(len(errors)), key=errors.__getitem__)]
        inverse = sizes / (squares + best)
        return cls(
            mean=mean,
            std=std,
            weight=right.T @ (inverse[:, None] * seen),
            offset=offset,
            error=min(errors),
            strength=float(best),
        )

    def __call__(self, inputs: Float[Tensor, "B F"]) -> Float[Tensor, "B T"]:
        """Predict, on the device and in the dtype of the inputs."""
        x = inputs.detach().cpu().double()
        return (((x - self.mean) / self.std) @ self.weight + self.offset).to(inputs)
