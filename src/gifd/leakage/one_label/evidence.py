"""Evidence: the head's part of an update, and whether it has the form that one image leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, ModelError
from gifd.federation.protocols import Protocol
from gifd.model import Model
from gifd.updates import Update

_SINGLE = 2.0**-24
"""The relative rounding error of float32, in which clients compute."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The head's part of an update, in float64 on the CPU.

    Of one image the weight's gradient is `d a^T`, with d the bias's gradient, the slope of the
    loss with respect to the logits, and a the input of the head.

    Args:
        weight: (N, F'), the gradient, without the columns that a defence hides.
        bias: (N,), likewise, if the head trains one.
        sent: (N, F), the weight's update as it was sent.
        head_weight, head_bias: (N, F) and (N,) of the model.
        rounding: the error of what was sent, relative to it.
        steps: local steps of the client.
        hidden: whether a defence hides columns.
        protocol: replays the local steps of the head alone.
        believed: whether the protocol contains defences, which act on more than the head.
    """

    model: Model
    weight: Float[Tensor, "N F"]
    bias: Float[Tensor, "N"] | None
    sent: Float[Tensor, "N G"]
    head_weight: Float[Tensor, "N G"]
    head_bias: Float[Tensor, "N"]
    rounding: float
    steps: int
    hidden: bool
    protocol: Protocol
    believed: bool

    NEARLY: ClassVar[float] = 0.1
    """The tolerance of what holds for one gradient, when applied to several local steps."""

    @property
    def whole(self) -> bool:
        """Whether a, and with it the logits, is visible and the head's steps can be replayed."""
        seen = self.bias is not None and not self.hidden
        return seen and not (self.steps > 1 and self.believed)

    @property
    def tolerance(self) -> float:
        """Relative; far above the errors that float32 accumulates, and at most 0.1."""
        return min(1e-3 + 16 * self.rounding, 0.1)

    @property
    def near(self) -> float:
        """The tolerance of what holds for one gradient."""
        return self.tolerance if self.steps == 1 else self.NEARLY

    def rank_one(self) -> tuple[Float[Tensor, "N"], Float[Tensor, "F"]]:
        """Find d (N,) and a (F,) such that `d a^T` is nearest to the weight's gradient.

        Without a bias only their directions are known. Then a has length 1. The sign is such that
        the largest number of d is negative: it belongs to the label, as it balances all others.
        If two numbers are equally large, the sign is the one that leaves a single negative number;
        if neither or both do, a is taken to be positive, as behind a ReLU.
        """
        if self.bias is not None:
            return self.bias, self.bias @ self.weight / self.bias.square().sum()
        a = self.weight[self.weight.square().sum(1).argmax()]
        a = (self.weight @ a) @ self.weight
        a = a / a.norm()
        d = self.weight @ a
        largest, second = d.abs().topk(2).values
        against = bool(d[d.abs().argmax()] > 0)
        if float(second) > 0.99 * float(largest):
            one, other = self.negative(d) == 1, self.negative(-d) == 1
            against = other if one != other else bool(a.sum() < 0)
        return (-d, -a) if against else (d, a)

    def negative(self, d: Float[Tensor, "N"]) -> int:
        """How many numbers are negative, beyond rounding."""
        return int((d < -4 * self.rounding * d.norm()).sum())

    def one_negative(self, d: Float[Tensor, "N"]) -> bool:
        """Whether d has the signs of cross-entropy: one number is negative.

        If rounding left none negative, a single number at or below 0 counts.
        """
        return self.negative(d) == 1 or (self.negative(d) == 0 and int((d <= 0).sum()) == 1)

    def balanced(self, d: Float[Tensor, "N"]) -> bool:
        """Whether d sums to 0."""
        left = d.sum().abs() / d.abs().sum()
        return float(left) <= 10 * self.tolerance + floor(d) / float(d.norm())

    def beyond(self, d: Float[Tensor, "N"], a: Float[Tensor, "F"]) -> bool:
        """Whether the weight's gradient has a rank above one."""
        rest = (torch.outer(d, a) - self.weight).norm() / self.weight.norm()
        return float(rest) > (self.NEARLY if self.steps > 1 else 10 * self.tolerance)

    def likeliest(self) -> int:
        """The smallest number of the bias; without a bias the longest row.

        Of rows that are equally long, the one with the smallest sum. If one output tells two
        classes, the second if it is negative.
        """
        if len(self.weight) == 1:
            return int((self.weight.sum() if self.bias is None else self.bias) < 0)
        if self.bias is not None:
            return int(self.bias.argmin())
        length = self.weight.square().sum(1)
        longest = length >= 0.99 * length.max()
        score = self.weight.sum(1) if int(longest.sum()) > 1 else -length
        return int(torch.where(longest, score, torch.inf).argmin())


def gathered(observation: Observation) -> Evidence:
    """The evidence of an observation.

    Raises:
        ModelError: the model has no linear head, or its gradient vanishes.
    """
    model, protocol = observation.model, observation.protocol
    head = model.head(observation.ledger.image_shape)
    seen = None if head.bias is None or observation.hides(head.bias) else head.bias
    names = [head.weight] if seen is None else [head.weight, seen]
    sent = Update({name: observation.update[name] for name in names})
    gradient = protocol.as_gradient(sent, model.parameters)
    weight, shown = plain(gradient[head.weight]), protocol.shown(head.weight)
    bias = None if seen is None else plain(gradient[seen])
    if not bool((weight if bias is None else bias).any()):
        raise ModelError(
            f"expected a head whose gradient shows the label, got zeros only: {GRANT_LABELS}"
        )
    changed = not torch.equal(weight, plain(sent[head.weight]))
    if shown is not None:
        weight = weight[:, shown.expand(gradient[head.weight].shape).bool().all(0).cpu()]
    own = {name: model.parameters[name] for name in names}
    return Evidence(
        model=model,
        weight=weight,
        bias=bias,
        sent=plain(sent[head.weight]),
        head_weight=plain(own[head.weight]),
        head_bias=_added(model, observation.ledger.image_shape, plain(own[head.weight])),
        rounding=_rounding(sent, own if changed else {}, model.autocast),
        steps=len(protocol.visited(own, sent)),
        hidden=shown is not None,
        protocol=protocol,
        believed=bool(observation.ledger.believed),
    )


def floor(d: Float[Tensor, "N"]) -> float:
    """The error that rounding of the client's probabilities may cause in d."""
    return 4 * _SINGLE * math.sqrt(len(d))


def plain(tensor: Tensor) -> Tensor:
    """Without a graph, in float64 on the CPU."""
    return tensor.detach().cpu().double()


def _rounding(
    sent: Update, own: Mapping[str, Tensor], computed: torch.dtype | None = None
) -> float:
    """The relative error of what was sent: of its number format, that in which it was computed and,
    if it is a change of weights, of the weights' format.
    """
    step = _SINGLE if computed is None else torch.finfo(computed).eps / 2
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(tensor.to(dtype).to(tensor), tensor) for tensor in sent.tensors):
            step = max(step, torch.finfo(dtype).eps / 2)
    lengths = [
        float(plain(weights).norm() / plain(sent[name]).norm().clamp_min(1e-300))
        for name, weights in own.items()
    ]
    return step + _SINGLE * max(lengths, default=0.0)


def _added(
    model: Model, image_shape: tuple[int, int, int], weight: Float[Tensor, "N F"]
) -> Float[Tensor, "N"]:
    """What the head adds to the logits, whether it is trained or not."""
    blank = next(iter(model.parameters.values())).new_zeros(2, *image_shape)
    with torch.no_grad():
        fed = model.representations(blank, f"{GRANT_LABELS}, they cannot be inferred")[0]
        logits = model.logits(model.parameters, model.buffers, blank)[0]
    return plain(logits) - weight @ plain(fed)
