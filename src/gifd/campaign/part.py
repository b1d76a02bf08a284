"""Part: what a part of an update gives away alone, and what the rest gives away without it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from gifd.interval import mean_interval

EXACT = 100.0
"""The PSNR in dB that an exact reconstruction counts as."""


class Leak(BaseModel):
    """What the attacks make of some part of clients' updates; a value per client.

    `psnr` is the best one of any attack, in dB, and `by` the attack; None if all of them refused.
    `labels` says whether this attack used the right labels.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    psnr: list[float | None]
    by: list[str | None]
    labels: list[bool | None]

    @property
    def mean(self) -> tuple[float, float] | None:
        """Mean PSNR and half its 95 % interval; None if every attack was refused."""
        values = [value for value in self.psnr if value is not None]
        if not values:
            return None
        mean, half = mean_interval(values)
        return mean, half or 0.0


class Part(BaseModel):
    """A part of a model: its name, its share of the update's numbers, and what it gives away."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    share: float
    alone: Leak
    without: Leak


class Parts(BaseModel):
    """All parts of one model. `grey` is the mean PSNR of a grey picture."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    victim: str
    setting: str
    images: list[str]
    grey: float
    whole: Leak
    parts: list[Part]


def leak(psnr: Sequence[Sequence[tuple[float, str, bool] | None]]) -> Leak:
    """The best of each client's attacks: PSNR, name, and whether its labels are right."""
    best = [max((each for each in own if each), default=None) for own in psnr]
    return Leak(
        psnr=[None if each is None else min(each[0], EXACT) for each in best],
        by=[None if each is None else each[1] for each in best],
        labels=[None if each is None else each[2] for each in best],
    )
