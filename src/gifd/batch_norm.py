"""Batch-norm statistics: means and variances of the inputs of a network's batch norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gifd.errors import ModelError
from gifd.model import Model
from gifd.trace import Calls


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """`mean` and (biased) `variance` of a layer's input per channel, both (C,)."""

    mean: Float[Tensor, "C"]
    variance: Float[Tensor, "C"]

    def to(self, like: Tensor) -> Statistics:
        """The same on another tensor's device and in its dtype."""
        return Statistics(mean=self.mean.to(like), variance=self.variance.to(like))


def batch_statistics(model: Model, images: Float[Tensor, "B C H W"]) -> tuple[Statistics, ...]:
    """The statistics of these images at every batch norm, in forward order; differentiable."""
    return tuple(
        Statistics(
            mean=given.transpose(0, 1).flatten(1).mean(1),
            variance=given.transpose(0, 1).flatten(1).var(1, correction=0),
        )
        for call in _calls(model, images)
        if (given := call["input"]) is not None
    )


def running_statistics(model: Model, image_shape: Sequence[int]) -> tuple[Statistics, ...]:
    """The running statistics stored in the model, in the same order.

    Raises:
        ModelError: a batch norm without running statistics.
    """
    blank = next(iter(model.parameters.values())).new_zeros(2, *image_shape)
    kept = []
    with torch.no_grad():
        for call in _calls(model, blank):
            mean, variance = call.get("running_mean"), call.get("running_var")
            if mean is None or variance is None:
                raise ModelError(
                    "expected batch norms that keep running statistics, got one that does not: "
                    "do not grant them"
                )
            kept.append(Statistics(mean=mean, variance=variance))
    return tuple(kept)


def _calls(model: Model, images: Tensor) -> list[Mapping[str, Tensor | None]]:
    """The arguments of every batch norm, with the running statistics before the call."""
    running = ("running_mean", "running_var")
    calls = Calls(F.batch_norm, ("input", *running), copied=running)
    with calls:
        model.logits(model.parameters, model.buffers, images)
    return [call.arguments for call in calls.made]
