"""Measure: a distance together with the replay that it is taken of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gifd.search.distances import Cosine, Distance


@final
@dataclass(frozen=True, kw_only=True)
class Measure:
    """What two candidates are compared by. Values of different measures are not comparable.

    A smoothed replay of the same images is nearer to the observed update than the exact one, so
    one run chooses its restarts, phases and answer by one measure, which its record names. Within
    a phase iterates are kept by the phase's own (`Phase.measure`).

    Args:
        distance: between the replayed update and the observed one.
        smoothing: width of the smoothed replay (`gifd.search.smoothing`), 0 for the exact one.
    """

    distance: Distance = Cosine()
    smoothing: float = 0.0

    def __str__(self) -> str:
        replay = f"smoothed replay, width {self.smoothing:g}" if self.smoothing else "exact replay"
        return f"{self.distance!r} of the {replay}"
