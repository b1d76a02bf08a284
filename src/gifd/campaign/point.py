"""Point: leakage and utility of one defence at one strength against one attacker."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gifd.campaign.renamed import ATTACKERS
from gifd.interval import mean_interval


class Point(BaseModel):
    """One point of a frontier. Scores are lists, one value per image; null if infinite.

    `defense` is a name or 'none', `strength` its options. For `accuracy`, `cosine`, `length` and
    `epsilon` see `gifd.campaign.utility.Utility`.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    defense: str
    strength: str
    attack: str
    preset: str
    attacker: str
    evaluations: int
    victim: str
    seed: int
    rounds: int
    images: list[str]
    psnr: list[float | None]
    ssim: list[float | None]
    stlpips: list[float | None]
    accuracy: Annotated[float, Field(allow_inf_nan=True)]  # NaN if no image was held out
    cosine: float | None
    length: float | None
    epsilon: float | None

    @field_validator("attacker")
    @classmethod
    def _renamed(cls, attacker: str) -> str:
        return ATTACKERS.get(attacker, attacker)

    def mean(self, metric: str) -> tuple[float, float]:
        """Mean of 'psnr', 'ssim' or 'stlpips' over the images, and half its 95 % interval."""
        return _interval([value for value in getattr(self, metric) if value is not None])

    def change(self, other: Point, metric: str) -> tuple[float, float]:
        """The same for the paired differences, this point's minus the other's."""
        pairs = zip(getattr(self, metric), getattr(other, metric), strict=True)
        return _interval([a - b for a, b in pairs if a is not None and b is not None])


def _interval(values: list[float]) -> tuple[float, float]:
    mean, half = mean_interval(values) if values else (math.nan, None)
    return mean, half or 0.0
