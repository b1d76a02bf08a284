"""Kernel ridge regression on several kinds of inputs, chosen by leave-one-out errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class KernelRidge:
    """`y = mean_y + (k(x) - means) @ weight`, with k the inner products with the examples.

    Each block of the inputs is centred and scaled to a mean squared length of 1. The kernel is the
    sum over the last few blocks. How many, and the ridge parameter, are those with the least
    leave-one-out error, which has a closed form: the residual of example i over `1 - h_i`.

    Args:
        blocks: each (N, F), centred and scaled: those that are used.
        means, scales: of the used blocks.
        first: the first used block.
        weight: (N, T).
        offset: mean of the outputs, (T,).
        residuals: (N, T) leave-one-out residuals.
        strength: the ridge parameter.

    Source: Allen, Technometrics 1974 (leave-one-out errors of ridge regression).
    """

    blocks: Sequence[Tensor]
    means: Sequence[Tensor]
    scales: Sequence[float]
    first: int
    weight: Float[Tensor, "N T"]
    offset: Float[Tensor, "T"]
    residuals: Float[Tensor, "N T"]
    strength: float

    STRENGTHS: ClassVar[Tensor] = torch.logspace(-10, 2, 25, dtype=torch.float64)
    """Candidate ridge parameters, as multiples of the kernel's mean eigenvalue."""
    SHARES: ClassVar[tuple[float, ...]] = (0.1, 0.25, 0.5, 1.0)
    """Candidate shares of the blocks, from the last one on."""

    @classmethod
    def fit(
        cls,
        blocks: Sequence[Float[Tensor, "N _"]],
        outputs: Float[Tensor, "N T"],
        judged: Float[Tensor, "N J"] | None = None,
    ) -> KernelRidge:
        """Fit N examples.

        Args:
            blocks: parts of the inputs, in an order of rising importance.
            outputs: to predict.
            judged: a short version of the outputs, by which the choice is made.
        """
        judged = outputs if judged is None else judged
        means = [block.mean(0) for block in blocks]
        centred = [block - mean for block, mean in zip(blocks, means, strict=True)]
        scales = [float(block.square().sum(1).mean().sqrt().clamp_min(1e-30)) for block in centred]
        centred = [block / scale for block, scale in zip(centred, scales, strict=True)]
        firsts = sorted({len(blocks) - max(1, round(s * len(blocks))) for s in cls.SHARES})
        best: tuple[float, int, float, Tensor, Tensor] | None = None
        total, last = torch.zeros(()), len(blocks)
        for first in reversed(firsts):
            own = sum((b @ b.T).double() for b in centred[first:last])
            total, last = own + total.to(own.device) if isinstance(own, Tensor) else total, first
            powers, basis = torch.linalg.eigh(total)
            powers = powers.clamp_min(0)
            for multiple in cls.STRENGTHS:
                strength = float(multiple * powers.mean().clamp_min(1e-30))
                error = float(_left_out(powers, basis, judged, strength).square().mean())
                if best is None or error < best[0]:
                    best = error, first, strength, powers, basis
        assert best is not None
        _, first, strength, powers, basis = best
        offset = outputs.mean(0)
        seen = basis.T @ (outputs - offset).double()
        weight = basis @ (seen / (powers + strength)[:, None])
        return cls(
            blocks=centred[first:],
            means=means[first:],
            scales=scales[first:],
            first=first,
            weight=weight.to(outputs),
            offset=offset,
            residuals=(strength * weight / _free(powers, basis, strength)).to(outputs),
            strength=strength,
        )

    def __call__(self, blocks: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, "T"]:
        """Predict from one input."""
        used = zip(blocks[self.first :], self.means, self.scales, self.blocks, strict=True)
        alike = sum((own @ ((x - mean) / scale)).double() for x, mean, scale, own in used)
        assert isinstance(alike, Tensor)
        return (alike @ self.weight.double()).to(self.offset) + self.offset


def _left_out(
    powers: Tensor, basis: Tensor, outputs: Tensor, strength: float
) -> Float[Tensor, "N T"]:
    y = (outputs - outputs.mean(0)).double()
    dropped = strength / (powers + strength)
    return basis @ (dropped[:, None] * (basis.T @ y)) / _free(powers, basis, strength)


def _free(powers: Tensor, basis: Tensor, strength: float) -> Float[Tensor, "N 1"]:
    """`1 - h_i` of every example."""
    free = basis.square() @ (strength / (powers + strength)) - 1 / len(basis)
    return free.clamp_min(1e-12)[:, None]
