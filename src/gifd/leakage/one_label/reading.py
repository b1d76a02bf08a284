"""Reading: the label of one image, and whether it is certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, NAME_ATTACKER
from gifd.leakage.one_label.doubt import looks_like
from gifd.leakage.one_label.evidence import Evidence, gathered
from gifd.leakage.one_label.slopes import candidates, is_cross_entropy, misfits, some_length


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an update shows of one image's label.

    Args:
        label: the likeliest.
        checked: whether no other label is possible. If not, the label relies on the assumption
            that the update has one image and the right sign; the update does not contradict it.
        doubt: what the update looks like if one undisturbed image cannot have left it; None if
            one can.
        negative, classes: how many numbers of the head's evidence are negative, and of how many.
    """

    label: int
    checked: bool
    doubt: str | None
    negative: int
    classes: int

    def refusal(self) -> str:
        """Why the label cannot be read, in one line."""
        unfit = ", but of other sizes than the model leaves" if self.negative == 1 else ""
        return (
            f"expected the head's gradient of one image, in which one number of {self.classes} is "
            f"negative, got {self.negative}{unfit}: it looks like {self.doubt}; "
            f"{GRANT_LABELS}, or {NAME_ATTACKER} if a defence is at work"
        )


def read_label(observation: Observation) -> Reading:
    """The label, and a doubt unless one image can have left the update.

    Let a be the input of the head, z its logits and `d(y) = d loss(z, y) / dz`. Of one image the
    bias's gradient is d(y) and the weight's is `d(y) a^T`, of rank one. Both together give a,
    hence z, and the label is the y whose d(y), by the model's own loss, equals the bias's gradient.

    Under cross-entropy d(y) is `p - onehot(y)`: it sums to 0 and one number is negative, in every
    local step and hence in their sum. Without a bias, or behind a defence that hides columns, the
    check uses these two facts, the rank and the possible lengths of a. Several local steps of the
    head are replayed with a constant a. If a changed too much for that, only signs and sum are
    checked.

    Some cases cannot be checked (`Reading.checked`):

    - which of two numbers is the negative one if all others are 0, as with two classes, over
      several steps or without a bias (a is then taken to be positive, as behind a ReLU)
    - several steps without a bias, which some batches leave as well
    - steps in which a changes much
    - another loss than cross-entropy, without a bias

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020, for the sign. The checks
    that one image left the gradient are ours.

    Raises:
        ModelError: the model has no linear head, or its gradient vanishes.
    """
    seen = gathered(observation)
    d, a = seen.rank_one()
    usual, several = is_cross_entropy(seen), seen.steps > 1
    if seen.whole:
        label, checked, fits = _fitting(seen, d, a)
    elif usual:
        label, checked, fits = _signed(seen, d, a)
    else:
        label, checked, fits = seen.likeliest(), False, not seen.beyond(d, a)
    if several and not fits:  # one image's steps may lead as far, with its signs
        label = seen.likeliest()
        fits = not usual or (seen.one_negative(d) and seen.balanced(d))
    return Reading(
        label=label,
        checked=checked,
        doubt=None if fits else looks_like(seen, d, a),
        negative=seen.negative(d),
        classes=len(d),
    )


def _fitting(
    seen: Evidence, d: Float[Tensor, "N"], a: Float[Tensor, "F"]
) -> tuple[int, bool, bool]:
    """The label whose slope of the loss is nearest to d.

    Returns:
        it; whether the other sign fits worse, so that it is certain; and whether it fits.
    """
    labels, slopes = candidates(seen, d, a)
    honest, flipped = (misfits(sign * d, slopes) for sign in (1, -1))
    best, other = float(honest.min()), float(flipped.min())
    fits = best <= seen.near and best <= 10 * other and not seen.beyond(d, a)
    told_apart = other > min(10 * best, seen.near)
    only_two = seen.negative(-d) == 1  # whose sign is in their size alone
    checked = fits and told_apart and not (only_two and seen.steps > 1)
    return int(labels[honest.argmin()]) if fits else seen.likeliest(), checked, fits


def _signed(seen: Evidence, d: Float[Tensor, "N"], a: Float[Tensor, "F"]) -> tuple[int, bool, bool]:
    """The class with the negative number, under cross-entropy.

    Returns:
        it; whether it is certain; and whether the gradient fits: it has rank one, and d sums to 0
        (hidden columns) or is `p - onehot(y)` for some length of a.
    """
    fits = seen.one_negative(d) and not seen.beyond(d, a)
    only_two = seen.negative(-d) == 1
    if seen.hidden:
        fits = fits and seen.balanced(d)
    elif fits:
        fits = some_length(seen, d, a)
        if only_two and not fits:
            d, fits = -d, some_length(seen, -d, -a)
    certain = fits and not only_two and seen.steps == 1
    return int(d.argmin()) if fits else seen.likeliest(), certain, fits
