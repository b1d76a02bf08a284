"""The label of one image, read off the head's gradient, and whether that is one image's at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad

from gifd.attacker.observation import Observation
from gifd.errors import ModelError
from gifd.federation.protocols import Protocol
from gifd.model import Model
from gifd.updates import Update

_SINGLE = 2.0**-24
"""The relative step of float32, in which clients compute."""


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an update shows of one image's label.

    Args:
        label: the likeliest.
        checked: whether it is the only one that can be. Otherwise it is as good as the belief in
            one image and its sign, which the update neither bears out nor contradicts.
        doubt: what the update looks like where it is not what one undisturbed image leaves; None
            where it may be.
        negative, classes: how many numbers of the head's evidence are negative, and of how many.
    """

    label: int
    checked: bool
    doubt: str | None
    negative: int
    classes: int

    def refusal(self) -> str:
        """Why the label is not to be had, in one line."""
        unfit = ", which does not fit the model" if self.negative == 1 else ""
        return (
            f"expected the head's gradient of one image, in which one number of {self.classes} is "
            f"negative, got {self.negative}{unfit}: it looks like {self.doubt}; mend that, grant "
            "the labels, or name the ledger's attacker if a defence is at work"
        )


def read_label(observation: Observation) -> Reading:
    """The label, and a doubt unless the update is what one image leaves.

    Let a be what entered the head, z its logits and `d(y) = d loss(z, y) / dz`. Of one image the
    bias's gradient is d(y) and the weight's `d(y) a^T`, of rank one: a is read off them, z
    follows, and the label is the y whose d(y), by the model's own loss, is what was sent.

    Under cross-entropy d(y) is `p - onehot(y)`: it sums to 0 and one number of it is negative, in
    every local step and hence in their sum. Without a bias, and where a defence hides columns, it
    is these, the rank and the length of a that are asked. Of several steps the head's are
    replayed as though a did not change; where it does, only signs and sum are asked.

    What cannot be checked is said (`Reading.checked`): over several steps or without a bias, which
    of two numbers is negative where all others are 0, as of two classes (without a bias a is then
    taken to be positive, as behind a ReLU); steps in which a changes much; without a bias, another
    loss than cross-entropy.

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020, for the sign; what tells
    one image's gradient from others is ours.

    Raises:
        ModelError: the model has no linear head, or its gradient vanishes.
    """
    model, protocol = observation.model, observation.protocol
    head = model.head(observation.ledger.image_shape)
    names = [head.weight] if head.bias is None else [head.weight, head.bias]
    sent = Update({name: observation.update[name] for name in names})
    gradient = protocol.as_gradient(sent)
    weight, shown = _plain(gradient[head.weight]), protocol.shown(head.weight)
    bias = None if head.bias is None else _plain(gradient[head.bias])
    if not bool((weight if bias is None else bias).any()):
        raise ModelError(
            "expected a head whose gradient shows the label, got zeros only: grant the labels"
        )
    changed = not torch.equal(weight, _plain(sent[head.weight]))
    if shown is not None:
        weight = weight[:, shown.expand(gradient[head.weight].shape).bool().all(0).cpu()]
    own = {name: model.parameters[name] for name in names}
    return _Evidence(
        model=model,
        weight=weight,
        bias=bias,
        sent=_plain(sent[head.weight]),
        head_weight=_plain(own[head.weight]),
        head_bias=_added(model, observation.ledger.image_shape, _plain(own[head.weight])),
        rounding=_rounding(sent, own if changed else {}),
        steps=len(protocol.visited(own, sent)),
        hidden=shown is not None,
        protocol=protocol,
        believed=bool(observation.ledger.believed),
    ).read()


class _Alone(nn.Module):
    """The head as a model of its own, fed what entered it."""

    def __init__(self, weight: Float[Tensor, "N F"], bias: Float[Tensor, "N"]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, fed: Float[Tensor, "B F 1 1"]) -> Float[Tensor, "B N"]:
        """(B, F, 1, 1) -> (B, N)."""
        return F.linear(fed.flatten(1), self.weight, self.bias)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Evidence:
    """The head's part of an update of one image, its numbers in float64 on the CPU.

    Args:
        weight: (N, F'), the gradient, where it is shown.
        bias: (N,), likewise, where the head trains one.
        sent: (N, F), the weight's update as it came.
        head_weight, head_bias: (N, F) and (N,) of the model.
        rounding: of what was sent, relative to it.
        steps: of the client.
        hidden: whether a defence hides columns.
        protocol: by which the steps of the head alone are replayed.
        believed: whether it has defences, which act on more than the head.
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

    CANDIDATES: ClassVar[int] = 8
    """Labels tried: those of the largest evidence, of which the true one is the first under
    cross-entropy."""
    NEARLY: ClassVar[float] = 0.1
    """How far several local steps may lead away from one gradient to be held against it."""

    def read(self) -> Reading:
        """The label by the rules that apply here."""
        d, a = self._rank_one()
        usual, several = self._cross_entropy(), self.steps > 1
        if self._whole:
            label, checked, fits = self._fitting(d, a)
        elif usual:
            label, checked, fits = self._signed(d, a)
        else:
            label, checked, fits = self._likeliest(), False, not self._beyond(d, a)
        if several and not fits:  # one image's steps may lead as far, with its signs
            label = self._likeliest()
            fits = not usual or (self._one_negative(d) and self._balanced(d))
        return Reading(
            label=label,
            checked=checked,
            doubt=None if fits else self._looks_like(d, a),
            negative=self._negative(d),
            classes=len(d),
        )

    # -- what is read ------------------------------------------------------------------------

    def _rank_one(self) -> tuple[Tensor, Tensor]:
        """Find d (N,) and a (F,), `d a^T` being nearest to the weight's gradient.

        Without a bias a has length 1, and the label's number is the largest, as it is against all
        others together. Where another is as large, the only negative one, if there is one; else a
        is taken to be positive, as behind a ReLU.
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
            one, other = self._negative(d) == 1, self._negative(-d) == 1
            against = other if one != other else bool(a.sum() < 0)
        return (-d, -a) if against else (d, a)

    def _negative(self, d: Tensor) -> int:
        """How many numbers are, beyond rounding."""
        return int((d < -4 * self.rounding * d.norm()).sum())

    def _one_negative(self, d: Tensor) -> bool:
        """Whether d has the signs of cross-entropy; where rounding left no negative number, the
        only one that is 0 is it.
        """
        return self._negative(d) == 1 or (self._negative(d) == 0 and int((d <= 0).sum()) == 1)

    def _balanced(self, d: Tensor) -> bool:
        """Whether d sums to 0."""
        left = d.sum().abs() / d.abs().sum()
        return float(left) <= 10 * self._tolerance + _floor(d) / float(d.norm())

    def _likeliest(self) -> int:
        """The least number of the bias; without one the longest row, if need be by its sum."""
        if self.bias is not None:
            return int(self.bias.argmin())
        length = self.weight.square().sum(1)
        longest = length >= 0.99 * length.max()
        score = self.weight.sum(1) if int(longest.sum()) > 1 else -length
        return int(torch.where(longest, score, torch.inf).argmin())

    # -- whether it is one image's -----------------------------------------------------------

    @property
    def _whole(self) -> bool:
        """Whether a, and with it the logits, is seen, and the head's steps can be replayed."""
        seen = self.bias is not None and not self.hidden
        return seen and not (self.steps > 1 and self.believed)

    @property
    def _tolerance(self) -> float:
        """Relative, a hundred times what float32 computes to."""
        return min(1e-3 + 16 * self.rounding, 0.1)

    @property
    def _near(self) -> float:
        """The tolerance of what holds for one gradient."""
        return self._tolerance if self.steps == 1 else self.NEARLY

    def _cross_entropy(self) -> bool:
        """Whether that is the model's loss."""
        z = torch.linspace(-1, 1, len(self.head_weight), dtype=torch.float64)
        slope = self._slopes(z, torch.zeros(1, dtype=torch.long))[0]
        expected = z.softmax(0)
        expected[0] -= 1
        return bool((slope - expected).norm() < 1e-4 * expected.norm())

    def _fitting(self, d: Tensor, a: Tensor) -> tuple[int, bool, bool]:
        """The label whose slope of the loss is nearest to d; whether no other sign would do as
        well, and whether it is near.
        """
        labels, slopes = self._candidates(d, a)
        honest, flipped = (self._misfits(sign * d, slopes) for sign in (1, -1))
        best, other = float(honest.min()), float(flipped.min())
        fits = best <= self._near and best <= 10 * other and not self._beyond(d, a)
        told_apart = other > min(10 * best, self._near)
        only_two = self._negative(-d) == 1  # whose sign is in their size alone
        checked = fits and told_apart and not (only_two and self.steps > 1)
        return int(labels[honest.argmin()]) if fits else self._likeliest(), checked, fits

    def _signed(self, d: Tensor, a: Tensor) -> tuple[int, bool, bool]:
        """The negative class, whether no other can be, and whether it has a gradient of
        cross-entropy for itself: one of rank one that sums to 0 as p of some length of a does.
        """
        fits = self._one_negative(d) and not self._beyond(d, a)
        only_two = self._negative(-d) == 1
        if self.hidden:
            fits = fits and self._balanced(d)
        elif fits:
            fits = self._some_length(d, a)
            if only_two and not fits:
                d, fits = -d, self._some_length(-d, -a)
        return int(d.argmin()) if fits else self._likeliest(), fits and not only_two, fits

    def _candidates(self, d: Tensor, a: Tensor) -> tuple[Int[Tensor, "L"], Float[Tensor, "L N"]]:
        """Labels and their slopes."""
        count = min(self.CANDIDATES, len(d))
        labels = torch.cat([d.abs().topk(count).indices, d.argmin()[None]])
        if self.steps > 1:
            return labels, self._replayed(a, labels)
        return labels, self._slopes(self.head_weight @ a + self.head_bias, labels)

    def _replayed(self, a: Tensor, labels: Int[Tensor, "L"]) -> Float[Tensor, "L N"]:
        """What local steps of the head alone would send for its bias, were a to stay."""
        like = next(iter(self.model.parameters.values()))
        alone = _Alone(self.head_weight.to(like), self.head_bias.to(like))
        zeros, ones = [0.0] * len(a), [1.0] * len(a)
        model = Model(module=alone, mean=zeros, std=ones, loss=self.model.loss)
        given, found = a.to(like).view(1, -1, 1, 1), []
        for label in labels.to(like.device):
            sent = self.protocol(model, model.parameters, model.buffers, given, label[None])
            found.append(self.protocol.as_gradient(sent)["bias"])
        return _plain(torch.stack(found))

    def _misfits(self, d: Tensor, slopes: Float[Tensor, "L N"]) -> Float[Tensor, "L"]:
        """How far d is from each slope, relative to d, beyond what the client rounded."""
        away: Tensor = (slopes - d).norm(dim=1)
        return (away - _floor(d)).clamp_min(0).div(d.norm())

    def _slopes(self, logits: Float[Tensor, "N"], labels: Int[Tensor, "L"]) -> Float[Tensor, "L N"]:
        """`d loss / d logits` of one image with each of these labels."""
        like, loss = next(iter(self.model.parameters.values())), self.model.loss
        row = logits.to(like)[None]
        each = [grad(loss)(row, label[None])[0] for label in labels.to(like.device)]
        return _plain(torch.stack(each))

    def _beyond(self, d: Tensor, a: Tensor) -> bool:
        """Whether the weight's gradient is of a higher rank than one."""
        rest = (torch.outer(d, a) - self.weight).norm() / self.weight.norm()
        return float(rest) > (self.NEARLY if self.steps > 1 else 10 * self._tolerance)

    def _some_length(self, d: Tensor, a: Tensor) -> bool:
        """Whether a is of some length t at which `d / t` is `p - onehot(y)`."""
        lengths = float(d.norm()) / 1.5 * torch.logspace(0, 10, 640, dtype=torch.float64)
        for _ in range(3):
            slope = (lengths[:, None] * (self.head_weight @ a) + self.head_bias).softmax(1)
            slope[:, d.argmin()] -= 1
            seen = d / lengths[:, None]
            away = ((seen - slope).norm(dim=1) - _floor(d)).clamp_min(0) / seen.norm(dim=1)
            best = int(away.argmin())
            around = lengths[max(best - 1, 0)], lengths[min(best + 1, len(lengths) - 1)]
            lengths = torch.linspace(float(around[0]), float(around[1]), 65, dtype=torch.float64)
        return float(away.min()) <= (self.NEARLY if self.steps > 1 else 10 * self._tolerance)

    # -- what it is instead ------------------------------------------------------------------

    def _looks_like(self, d: Tensor, a: Tensor) -> str:
        alike = torch.cosine_similarity(self.sent.flatten(), self.head_weight.flatten(), dim=0)
        if float(alike.abs()) > 0.9:
            return "the weights themselves, not what changed in them"
        if int((d != 0).sum()) == 1:
            return "one that the model is so sure of that rounding hides its label"
        if self.rounding > 0.01:
            return "a change that is hardly larger than what its numbers round to"
        if self._beyond(d, a):
            return "a batch of several images, or one behind a defence"
        if self._whole and self.steps == 1:
            return self._unlike(d, a)
        return _FLIPPED if self._negative(-d) == 1 else _ANYTHING

    def _unlike(self, d: Tensor, a: Tensor) -> str:
        """Of rank one, and yet not the slope of the loss."""
        slopes = self._candidates(d, a)[1]
        if float(self._misfits(-d, slopes).min()) <= self._tolerance:
            return _FLIPPED
        if len(d) == 2:
            return _ANYTHING
        scales = (slopes @ d) / slopes.square().sum(1).clamp_min(1e-300)
        away = (scales[:, None] * slopes - d).norm(dim=1) / d.norm()
        scale = float(scales[away.argmin()])
        if float(away.min()) <= self._tolerance:
            why = "another learning rate, clipping, smoothed labels or a batch"
            return f"one times {scale:.2g} ({why})" if scale > 0 else _FLIPPED
        goal = (self.head_weight @ a + self.head_bias).softmax(0) - d
        rest = goal.sort().values[:-1]  # of (1 - e) onehot + e / N
        if float((rest - rest.mean()).abs().max()) < 0.1 * float(rest.mean()):
            smoothing = float(rest.mean()) * len(d)
            return f"one whose labels were smoothed by {smoothing:.2g}, unlike the model's loss"
        return _ANYTHING


_FLIPPED = "one with its sign flipped (a gradient where a change of weights is expected)"
_ANYTHING = "a batch of several images, smoothed labels, another loss or another learning rate"


def _floor(d: Tensor) -> float:
    """What rounding of probabilities in the client may come to."""
    return 4 * _SINGLE * math.sqrt(len(d))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _rounding(sent: Update, own: Mapping[str, Tensor]) -> float:
    """Of what was sent, relative to it: of its number format and, in a change of weights, of
    theirs.
    """
    step = _SINGLE
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(tensor.to(dtype).to(tensor), tensor) for tensor in sent.tensors):
            step = torch.finfo(dtype).eps / 2
    lengths = [
        float(_plain(weights).norm() / _plain(sent[name]).norm().clamp_min(1e-300))
        for name, weights in own.items()
    ]
    return step + _SINGLE * max(lengths, default=0.0)


def _added(model: Model, image_shape: tuple[int, int, int], weight: Tensor) -> Float[Tensor, "N"]:
    """What the head adds to the logits, whether it trains it or not."""
    blank = next(iter(model.parameters.values())).new_zeros(2, *image_shape)
    with torch.no_grad():
        fed = model.representations(blank, "grant the labels, they cannot be inferred")[0]
        logits = model.logits(model.parameters, model.buffers, blank)[0]
    return _plain(logits) - weight @ _plain(fed)
