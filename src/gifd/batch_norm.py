"""Batch-norm statistics: means and variances of the inputs of a network's batch norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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


def returned_statistics(
    model: Model,
    buffers: Mapping[str, Tensor],
    image_shape: Sequence[int],
    passes: Sequence[int],
) -> tuple[Statistics, ...]:
    """The statistics of a client's batches, from the buffers that it returned, in forward order.

    A forward pass in training mode takes a running mean r to `(1 - m) r + m mean`, and a running
    variance likewise with the unbiased `n / (n - 1) variance` of n values per channel. m is the
    layer's momentum or, if that is None, one over the number of passes so far. After one pass this
    is solved for the batch's own statistics, exactly. After T passes it is solved for a mean of T
    batches' statistics, each at the weights of its pass. The weights are
    `m_t prod_{s > t} (1 - m_s)`, for the variance times `n_t / (n_t - 1)`, over their sum.

    Args:
        model: with the weights and buffers that the client received, in the mode of its training.
        buffers: those that it returned, by name (`Capture.buffers`).
        image_shape: (C, H, W) of the images.
        passes: the number of images in each pass (`Protocol.passes`).

    Raises:
        ModelError: the buffers do not tell it: a layer is not in training mode, is used twice,
            keeps no statistics, or has not changed; another number of passes was counted; or a
            variance would be below 0.
    """
    counted = passes_counted(model, buffers)
    if counted is not None and counted != len(passes):
        raise ModelError(
            f"expected the passes that the batch norms' counters show, {counted}, got {len(passes)}"
        )
    found = []
    for name, values in _layers(model, image_shape):
        own = {part: model.buffers[f"{name}.{part}"].double().cpu() for part in _RUNNING}
        after = {part: buffers.get(f"{name}.{part}", own[part]).double().cpu() for part in _RUNNING}
        if all(torch.equal(after[part], own[part]) for part in _RUNNING):
            raise ModelError(f"expected every batch norm's buffers to change, '{name}' has not")
        kept, of_mean, of_variance = _weights(model, name, [images * values for images in passes])
        mean = (after["running_mean"] - kept * own["running_mean"]) / of_mean
        variance = (after["running_var"] - kept * own["running_var"]) / of_variance
        if not bool((variance > -_ROUNDING * after["running_var"].abs()).all()):
            raise ModelError(
                f"expected variances of 0 or more at '{name}', got {float(variance.min()):.2g}: "
                "another momentum or number of passes"
            )
        found.append(Statistics(mean=mean, variance=variance.clamp_min(0)))
    return tuple(found)


def passes_counted(model: Model, buffers: Mapping[str, Tensor]) -> int | None:
    """The forward passes in training mode that the batch norms' counters show; None: unknown.

    Below 0 the weights before and after are swapped.

    Args:
        model: with the buffers that the client received.
        buffers: those that it returned.
    """
    counted = {
        float(buffers[name]) - float(own)
        for name, own in model.buffers.items()
        if name.endswith("num_batches_tracked") and name in buffers
    } - {0.0}  # a layer that is not in training mode
    if len(counted) != 1:
        return None
    (count,) = counted
    return int(count) if count.is_integer() else None


def _weights(model: Model, name: str, counts: Sequence[int]) -> tuple[float, float, float]:
    """What is left of a layer's first running statistic, and the sums of the passes' weights.

    Args:
        model: with the buffers before.
        name: of the layer.
        counts: values per channel in each pass.
    """
    momentum: float | None = getattr(model.module.get_submodule(name), "momentum", None)
    begun = int(model.buffers.get(f"{name}.num_batches_tracked", torch.zeros(())))
    kept, of_mean, of_variance = 1.0, 0.0, 0.0
    for number, n in enumerate(counts, start=begun + 1):
        if n < 2:
            raise ModelError(f"expected more than one value per channel at '{name}', got {n}")
        m = 1 / number if momentum is None else momentum
        kept = kept * (1 - m)
        of_mean = of_mean * (1 - m) + m
        of_variance = of_variance * (1 - m) + m * n / (n - 1)
    return kept, of_mean, of_variance


_RUNNING = ("running_mean", "running_var")
_ROUNDING = 1e-2
"""A variance that may be below 0 by rounding to half precision, relative to the running one."""


def _layers(model: Model, image_shape: Sequence[int]) -> list[tuple[str, int]]:
    """Name of each batch norm, in forward order, and its values per channel and image.

    Each is known by a number of its own in its running mean.
    """
    names = [
        name
        for name, layer in model.module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and f"{name}.running_mean" in model.buffers
    ]
    marks = {
        f"{name}.running_mean": torch.full_like(model.buffers[f"{name}.running_mean"], place)
        for place, name in enumerate(names)
    }
    blank = next(iter(model.parameters.values())).new_zeros(2, *image_shape)
    with torch.no_grad():
        calls = _calls(model, blank, marks)
    found = []
    for call in calls:
        given, mark = call["input"], call.get("running_mean")
        if given is None or mark is None:
            raise ModelError("expected batch norms that keep running statistics, got one without")
        if not call.get("training"):
            raise ModelError(
                "expected a model whose batch norms are in training mode, as the client's were: "
                "return it after .train()"
            )
        found.append((float(mark[0]), given.numel() // given.shape[1] // len(blank)))
    if sorted(mark for mark, _ in found) != list(range(len(names))):
        raise ModelError("expected every batch norm to be used once in a forward pass")
    return [(names[int(mark)], values) for mark, values in found]


def _calls(
    model: Model, images: Tensor, buffers: Mapping[str, Tensor] | None = None
) -> list[Mapping[str, Any]]:
    """The arguments of every batch norm, with the running statistics before the call."""
    calls = Calls(F.batch_norm, ("input", *_RUNNING, "weight", "bias", "training"), copied=_RUNNING)
    with calls:
        model.logits(model.parameters, {**model.buffers, **(buffers or {})}, images)
    return [call.arguments for call in calls.made]
