"""Reconstruction: what an attack makes of an observation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from gifd.search import Measure, PhaseResult


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """What an attack makes of an observation.

    Args:
        images: (B, C, H, W) in [0, 1]: the answer.
        labels: (B,) the labels it replayed with.
        label_source: whether they were 'granted', 'inferred' (exact), 'estimated' or 'searched'
            with the images.
        hypotheses: how many labellings the restarts tried, in turn.
        prior_labels: (B,) the classes a conditional prior was asked for; None without one.
        distance: the answer's matching distance, by `selection`.
        selection: the one measure by which restarts, phases and the answer were chosen.
        phase: the name of the phase that gave the answer.
        phases: what every phase found.
        interrupted: whether Ctrl-C cut the search short.
        dropped: the restarts that became non-finite, by number.
        at_once: how many observations were attacked together.
        seed, seconds: of this run; of several at once each has an equal share of the time.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, "B"]
    label_source: str
    hypotheses: int
    prior_labels: Int[Tensor, "B"] | None
    distance: float
    selection: Measure
    phase: str
    phases: tuple[PhaseResult, ...]
    interrupted: bool
    dropped: tuple[int, ...]
    at_once: int
    seed: int
    seconds: float

    @property
    def evaluations(self) -> int:
        """Victim gradients computed, all phases and restarts together."""
        return sum(phase.evaluations for phase in self.phases)
