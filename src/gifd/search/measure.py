"""Measure: a distance and the replay that it is computed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gifd.search.distances import Cosine, Distance


@final
@dataclass(frozen=True, kw_only=True)
class Measure:
    """Compares candidates. Values of different measures are not comparable.

    A smoothed replay is nearer to the observed update than the exact replay of the same images.
    So a run selects restarts, phases and its answer by one measure, which its record names.
    Within a phase iterates are kept by the phase's own (`Phase.measure`).

    Args:
        distance: between the replayed update and the observed one.
        smoothing: width of the smoothed replay (`gifd.search.smoothing`), 0 for the exact one.
    """

    distance: Distance = Cosine()
    smoothing: float = 0.0

    def __str__(self) -> str:
        replay = f"smoothed replay, width {self.smoothing:g}" if self.smoothing else "exact replay"
        return f"{self.distance!r} of the {replay}"
