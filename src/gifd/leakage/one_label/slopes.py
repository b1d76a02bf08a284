"""Slopes of the loss with respect to the logits, to compare the evidence with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad

from gifd.leakage.one_label.evidence import Evidence, floor, plain
from gifd.model import Model

CANDIDATES = 8
"""Labels to try: those of the largest evidence. Under cross-entropy the true one is the first."""


def is_cross_entropy(seen: Evidence) -> bool:
    """Whether the model's loss is cross-entropy, whose slope is `softmax(z) - onehot(y)`."""
    z = torch.linspace(-1, 1, len(seen.head_weight), dtype=torch.float64)
    slope = _slopes(seen, z, torch.zeros(1, dtype=torch.long))[0]
    expected = z.softmax(0)
    expected[0] -= 1
    return bool((slope - expected).norm() < 1e-4 * expected.norm())


def candidates(
    seen: Evidence, d: Float[Tensor, "N"], a: Float[Tensor, "F"]
) -> tuple[Int[Tensor, "L"], Float[Tensor, "L N"]]:
    """Labels to try, and for each the d that it would leave."""
    count = min(CANDIDATES, len(d))
    labels = torch.cat([d.abs().topk(count).indices, d.argmin()[None]])
    if len(d) == 1:  # one output tells two classes
        labels = torch.tensor([0, 1])
    if seen.steps > 1:
        return labels, _replayed(seen, a, labels)
    return labels, _slopes(seen, seen.head_weight @ a + seen.head_bias, labels)


def misfits(d: Float[Tensor, "N"], slopes: Float[Tensor, "L N"]) -> Float[Tensor, "L"]:
    """The distance of d to each slope, relative to d, beyond the client's rounding."""
    away: Tensor = (slopes - d).norm(dim=1)
    return (away - floor(d)).clamp_min(0).div(d.norm())


def some_length(seen: Evidence, d: Float[Tensor, "N"], a: Float[Tensor, "F"]) -> bool:
    """Whether a has some length t at which `d / t` is `softmax(W t a + b) - onehot(y)`."""
    lengths = float(d.norm()) / 1.5 * torch.logspace(0, 10, 640, dtype=torch.float64)
    for _ in range(3):
        slope = (lengths[:, None] * (seen.head_weight @ a) + seen.head_bias).softmax(1)
        slope[:, d.argmin()] -= 1
        scaled = d / lengths[:, None]
        away = ((scaled - slope).norm(dim=1) - floor(d)).clamp_min(0) / scaled.norm(dim=1)
        best = int(away.argmin())
        around = lengths[max(best - 1, 0)], lengths[min(best + 1, len(lengths) - 1)]
        lengths = torch.linspace(float(around[0]), float(around[1]), 65, dtype=torch.float64)
    return float(away.min()) <= (seen.NEARLY if seen.steps > 1 else 10 * seen.tolerance)


def _slopes(
    seen: Evidence, logits: Float[Tensor, "N"], labels: Int[Tensor, "L"]
) -> Float[Tensor, "L N"]:
    """`d loss / d logits` of one image with each of these labels."""
    like, loss = next(iter(seen.model.parameters.values())), seen.model.loss
    row = logits.to(like)[None]
    each = [grad(loss)(row, label[None])[0] for label in labels.to(like.device)]
    return plain(torch.stack(each))


def _replayed(
    seen: Evidence, a: Float[Tensor, "F"], labels: Int[Tensor, "L"]
) -> Float[Tensor, "L N"]:
    """What local steps of the head alone would send for its bias, if a stayed constant."""
    like = next(iter(seen.model.parameters.values()))
    alone = _Alone(seen.head_weight.to(like), seen.head_bias.to(like))
    zeros, ones = [0.0] * len(a), [1.0] * len(a)
    model = Model(module=alone, mean=zeros, std=ones, loss=seen.model.loss)
    given, found = a.to(like).view(1, -1, 1, 1), []
    for label in labels.to(like.device):
        sent = seen.protocol(model, model.parameters, model.buffers, given, label[None])
        found.append(seen.protocol.as_gradient(sent, model.parameters)["bias"])
    return plain(torch.stack(found))


class _Alone(nn.Module):
    """The head as a model of its own, whose image is the head's input."""

    def __init__(self, weight: Float[Tensor, "N F"], bias: Float[Tensor, "N"]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, fed: Float[Tensor, "B F 1 1"]) -> Float[Tensor, "B N"]:
        """(B, F, 1, 1) -> (B, N)."""
        return F.linear(fed.flatten(1), self.weight, self.bias)
