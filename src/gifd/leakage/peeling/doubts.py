"""Doubts: activations too small to tell whether they are 0, judged by what they explain."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gifd.leakage.peeling.circuit import Pass
from gifd.leakage.peeling.layers import Convolution
from gifd.leakage.peeling.system import System

_log = logging.getLogger("gifd")

ROUNDS = 8
"""Times that the doubtful values of one activation are corrected."""
MOST = 300
"""Doubtful values that are judged together: those that explain the residual best."""

Slopes = Callable[[Tensor], tuple[Pass, list[Tensor]]]
"""A pass, and the slopes of its layers, in which an activation has this value."""


def corrected(
    system: System,
    slopes: Slopes,
    value: Float[Tensor, "B *S"],
    measured: Float[Tensor, "B *S"],
    doubt: Bool[Tensor, "B *S"],
) -> Tensor | None:
    """The value with those numbers switched, between 0 and what was measured, that are wrong.

    A number that is 0 and should not be leaves a slope out, one layer before the activation. What
    it should be explains part of the residual of this layer's equations.

    Args:
        system: the equations of layers whose slopes come through this activation.
        slopes: see above.
        value: of the activation, as it was believed.
        measured: as it was measured, with errors.
        doubt: where it is doubtful.

    Returns:
        `value` itself if no number is wrong; None if no layer is right before this activation.
    """
    if not bool(doubt.any()):
        return value
    (made, on), (_, off) = (slopes(torch.where(doubt, tiny, value)) for tiny in (1e-30, 0.0))
    for read, one, other in zip(made.reads, on, off, strict=True):
        layer, change = read.layer, one - other
        if layer.weight not in system.blocks or not isinstance(layer, Convolution):
            continue
        if change.shape != doubt.shape or bool((change[~doubt] != 0).any()):
            continue
        places = system.suspects(layer, change, doubt, MOST)
        index = tuple(places.T)
        missing = system.missing(layer, places, change[index])
        wrong = torch.where(value[index] > 0, -missing, missing) > 0.5
        if not bool(wrong.any()):
            return value
        sure = wrong & ((missing.abs() - 1).abs() < 0.3)
        wrong = sure if bool(sure.any()) else wrong
        index = tuple(places[wrong].T)
        switched = value.clone()
        switched[index] = torch.where(value[index] > 0, 0, measured[index].clamp_min(1e-30))
        _log.debug("peel: %d of %d doubtful values corrected", len(index[0]), int(doubt.sum()))
        return switched
    return None
