"""Doubt: what an update looks like that one undisturbed image cannot have left."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.leakage.one_label.evidence import Evidence
from gifd.leakage.one_label.slopes import candidates, misfits

_FLIPPED = (
    "one with its sign flipped (a gradient where a change of weights is expected, or the reverse)"
)
_ANYTHING = "a batch of several images, smoothed labels, another loss or another learning rate"


def looks_like(seen: Evidence, d: Float[Tensor, "N"], a: Float[Tensor, "F"]) -> str:
    """The likeliest cause, in a few words that end a sentence."""
    alike = torch.cosine_similarity(seen.sent.flatten(), seen.head_weight.flatten(), dim=0)
    if float(alike.abs()) > 0.9:
        return "the weights themselves, not what changed in them"
    if int((d != 0).sum()) == 1:
        return "one that the model is so sure of that rounding hides its label"
    if seen.rounding > 0.01:
        return "a change that is hardly larger than what its numbers round to"
    if seen.beyond(d, a):
        return "a batch of several images, or one behind a defence"
    if seen.whole and seen.steps == 1:
        return _unlike(seen, d, a)
    return _FLIPPED if seen.negative(-d) == 1 else _ANYTHING


def _unlike(seen: Evidence, d: Float[Tensor, "N"], a: Float[Tensor, "F"]) -> str:
    """The weight's gradient has rank one, but d is no slope of the loss."""
    _, slopes = candidates(seen, d, a)
    if float(misfits(-d, slopes).min()) <= seen.tolerance:
        return _FLIPPED
    if len(d) == 2:
        return _ANYTHING
    scales = (slopes @ d) / slopes.square().sum(1).clamp_min(1e-300)
    away = (scales[:, None] * slopes - d).norm(dim=1) / d.norm()
    scale = float(scales[away.argmin()])
    if float(away.min()) <= seen.tolerance:
        why = "another learning rate, clipping, smoothed labels or a batch"
        return f"one times {scale:.2g} ({why})" if scale > 0 else _FLIPPED
    goal = (seen.head_weight @ a + seen.head_bias).softmax(0) - d
    rest = goal.sort().values[:-1]  # of (1 - e) onehot + e / N
    if float((rest - rest.mean()).abs().max()) < 0.1 * float(rest.mean()):
        smoothing = float(rest.mean()) * len(d)
        return f"one whose labels were smoothed by {smoothing:.2g}, unlike the model's loss"
    return _ANYTHING
