"""Scoring a batch: assign reconstructions to true images, then measure each pair.

An update does not contain the order of its batch, so a reconstructed batch has no fixed order.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gifd.errors import InputError
from gifd.metrics.metric import Metric, check_pair


def match(images: Shaped[Tensor, "..."], truth: Shaped[Tensor, "..."]) -> Int[Tensor, "B"]:
    """Assign reconstructions to true images with the least total squared error.

    Args:
        images: Reconstructions (B, C, H, W), values in [0, 1].
        truth: True images of the same shape, values in [0, 1].

    Returns:
        Indices p (B,), int64, on the CPU: ``images[p[i]]`` belongs to ``truth[i]``. Each index
        occurs once.

    Raises:
        InputError: See ``Metric.__call__``.
    """
    check_pair(images, truth)
    guesses, goals = (batch.detach().cpu().double().flatten(1) for batch in (images, truth))
    cost = torch.stack([(guesses - goal).square().mean(1) for goal in goals])
    _, order = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(order, dtype=torch.int64)


def score(
    images: Shaped[Tensor, "..."],
    truth: Shaped[Tensor, "..."],
    metrics: Sequence[Metric],
) -> dict[str, list[float]]:
    """Assign reconstructions to true images (`match`), then measure each pair.

    Args:
        images: Reconstructions (B, C, H, W) in any order, values in [0, 1].
        truth: True images of the same shape, values in [0, 1].
        metrics: Metrics with different names.

    Returns:
        Metric name -> B scores in the order of ``truth``. PSNR is inf for equal images.

    Raises:
        InputError: See ``Metric.__call__``; or two metrics share a name.
    """
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise InputError(f"expected metrics of different names, got {', '.join(names)}")
    paired = images[match(images, truth).to(images.device)]
    return {metric.name: metric(paired, truth).tolist() for metric in metrics}
