"""Regularisers: penalties on the image, independent of its update.

As in the papers' code, they are computed on the normalised image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.batch_norm import batch_statistics
from gifd.errors import InputError
from gifd.model import Model
from gifd.priors.generator import IMAGE, State
from gifd.search.registration import aligned


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One search's iterate, as a regulariser sees it.

    Args:
        inputs: (B, C, H, W) normalised images.
        state: of the search space: variables and carried tensors.
        model: the victim; None if not needed.
        statistics: mean and variance of every batch norm's input; empty if not granted.
        group: (B, C, H, W) normalised: the mean of the restarts; None if there is none yet.
    """

    inputs: Float[Tensor, "B C H W"]
    state: State = field(default_factory=dict)
    model: Model | None = None
    statistics: tuple[tuple[Tensor, Tensor], ...] = ()
    group: Float[Tensor, "B C H W"] | None = None


class Regularizer(ABC):
    """A weighted penalty on a candidate."""

    @abstractmethod
    def __call__(self, candidate: Candidate) -> Float[Tensor, ""]:
        """The weighted penalty as a differentiable scalar."""


@final
@dataclass(frozen=True, kw_only=True)
class TotalVariation(Regularizer):
    """Anisotropic: `weight * (mean |x_(i+1,j) - x_(i,j)| + mean |x_(i,j+1) - x_(i,j)|)`.

    Source: Geiping et al., NeurIPS 2020, with means as in its published code.
    """

    weight: float

    def __call__(self, candidate: Candidate) -> Float[Tensor, ""]:
        """The weighted variation."""
        inputs = candidate.inputs
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

    def __call__(self, candidate: Candidate) -> Float[Tensor, ""]:
        """The weighted norm."""
        height, width = candidate.inputs.shape[-2:]
        norm: Tensor = torch.linalg.vector_norm(candidate.inputs)
        return self.weight * norm / (height * width)


@final
@dataclass(frozen=True, kw_only=True)
class BatchNormPrior(Regularizer):
    """`weight * sum_l (|mean_l(x) - mean_l|_2 + |var_l(x) - var_l|_2)` over the batch norms l.

    The targets are the statistics that the ledger grants; it is 0 if none are granted. The first
    layer has the weight `first`.

    Source: Yin et al., Dreaming to Distill, CVPR 2020, and See through Gradients, CVPR 2021;
    norms and the first layer's factor as in breaching's `DeepInversion`.
    """

    weight: float
    first: float = 10.0

    def __call__(self, candidate: Candidate) -> Float[Tensor, ""]:
        """The weighted sum; one more forward pass if statistics were granted."""
        model, total = candidate.model, candidate.inputs.new_zeros(())
        if model is None or not candidate.statistics:
            return total
        shown = batch_statistics(model, model.denormalize(candidate.inputs))
        if len(shown) != len(candidate.statistics):
            raise InputError(
                f"expected statistics of the model's {len(shown)} batch norms, got "
                f"{len(candidate.statistics)}"
            )
        for layer, (own, (mean, variance)) in enumerate(
            zip(shown, candidate.statistics, strict=True)
        ):
            factor = self.first if layer == 0 else 1.0
            total = total + factor * torch.linalg.vector_norm(own.mean - mean)
            total = total + factor * torch.linalg.vector_norm(own.variance - variance)
        return self.weight * total


@final
@dataclass(frozen=True, kw_only=True)
class GroupConsistency(Regularizer):
    """`weight * |x - group|_2 / (H W)`: pulls every restart towards the mean of all.

    The group is the mean of the restarts, each registered to their plain mean. From `begin` on it
    is updated at intervals of `every`. A single restart is its own mean.

    Args:
        weight: of the penalty.
        begin, every: as shares of the phase's steps.
        register: whether images are registered before they are averaged.

    Source: Yin et al., See through Gradients, CVPR 2021, Eq. 11; the scale is GIFD's.

    Differs from the paper: the registration is a shift found by phase correlation, not
    RANSAC-flow, a trained network. GIFD's code does not register.
    """

    weight: float
    begin: float = 1 / 30
    every: float = 1 / 150
    register: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= 1 or not 0 < self.every <= 1:
            raise InputError(
                "expected begin in [0, 1] and every in (0, 1], shares of a phase, got "
                f"begin={self.begin}, every={self.every}"
            )

    def due(self, step: int, steps: int) -> bool:
        """Whether the mean is updated before this step, counted from 0."""
        first, pace = round(self.begin * steps), max(1, round(self.every * steps))
        return step >= first and (step - first) % pace == 0

    def mean(self, inputs: Float[Tensor, "R B C H W"]) -> Float[Tensor, "B C H W"]:
        """The mean of these restarts, registered if `register`."""
        mean = inputs.mean(0)
        if not self.register or len(inputs) == 1:
            return mean
        return torch.stack([aligned(restart, mean) for restart in inputs]).mean(0)

    def __call__(self, candidate: Candidate) -> Float[Tensor, ""]:
        """The weighted penalty; 0 before there is a mean."""
        if candidate.group is None:
            return candidate.inputs.new_zeros(())
        away = candidate.inputs - candidate.group
        height, width = away.shape[-2:]
        # a norm has no gradient at 0, and a single restart equals its mean
        norm = (away.square().sum() + 1e-12).sqrt()
        return self.weight * norm / (height * width)


@final
@dataclass(frozen=True, kw_only=True)
class LatentDivergence(Regularizer):
    """`weight * KL(N(m, s^2) || N(0, 1))`, m and s over the numbers of each latent.

    `-1/2 sum (1 + log s^2 - m^2 - s^2)`, over the images of the batch.

    Source: Li et al., Auditing Privacy Defenses in Federated Learning via Generative Gradient
    Leakage, CVPR 2022; mean and spread over the dimensions as in its code.
    """

    weight: float

    def __call__(self, candidate: Candidate) -> Float[Tensor, ""]:
        """The weighted divergence of the latent `x`."""
        latent = candidate.state[IMAGE].flatten(1)
        mean, variance = latent.mean(1), latent.var(1, correction=0)
        inner = 1 + (variance + 1e-10).log() - mean.square() - variance
        return self.weight * -0.5 * inner.sum()
