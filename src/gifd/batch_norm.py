"""Batch-norm statistics: what entered a network's normalisation layers, as means and variances."""

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
    """Of one layer's input, channel by channel: `mean` and (biased) `variance`, both (C,)."""

    mean: Float[Tensor, "C"]
    variance: Float[Tensor, "C"]

    def to(self, like: Tensor) -> Statistics:
        """On the device of another tensor and in its dtype."""
        return Statistics(mean=self.mean.to(like), variance=self.variance.to(like))


def batch_statistics(model: Model, images: Float[Tensor, "B C H W"]) -> tuple[Statistics, ...]:
    """Of these images at every batch norm, in the order of the forward pass; differentiable."""
    return tuple(
        Statistics(
            mean=given.transpose(0, 1).flatten(1).mean(1),
            variance=given.transpose(0, 1).flatten(1).var(1, correction=0),
        )
        for call in _calls(model, images)
        if (given := call["input"]) is not None
    )


def running_statistics(model: Model, image_shape: Sequence[int]) -> tuple[Statistics, ...]:
    """Of the data the model was trained on, as its layers keep them, in the same order.

    Raises:
        ModelError: a batch norm that keeps none.
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
    """What every batch norm was called with, the running statistics as they were before."""
    running = ("running_mean", "running_var")
    calls = Calls(F.batch_norm, ("input", *running), copied=running)
    with calls:
        model.logits(model.parameters, model.buffers, images)
    return [call.arguments for call in calls.made]
