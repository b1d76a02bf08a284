"""Progress: where a running attack stands, for whoever wants to be told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from gifd.search.measure import Measure
from gifd.search.phase import Phase

SELDOM = 25
"""Steps between two looks at an accelerator's results, each of which makes the host wait for it."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a running attack stands.

    Args:
        phase, phase_index, phases: which of how many, from 0.
        step, steps: of the phase, from 1.
        images: attacked at once.
        restarts: of all images together, that have not fallen.
        evaluations, evaluations_planned: victim gradients, of all phases, images and restarts.
        distance: the least so far in this phase; of several images their mean.
        seconds: since the attack began.
    """

    phase: str
    phase_index: int
    phases: int
    step: int
    steps: int
    images: int
    restarts: int
    evaluations: int
    evaluations_planned: int
    distance: float
    seconds: float


Callback = Callable[[Progress], None]


@final
class Teller:
    """Tells a callback of the steps: each on a CPU, now and then on an accelerator.

    Args:
        callback: None is told nothing.
        phases, selection: of the run.
        images, restarts: at its beginning.
        often: whether every step is told.
    """

    def __init__(
        self,
        callback: Callback | None,
        phases: Sequence[Phase],
        selection: Measure,
        images: int,
        restarts: int,
        often: bool,
    ) -> None:
        self._callback, self._phases, self._images = callback, phases, images
        self._planned = images * planned_evaluations(phases, restarts, selection)
        self._often, self._began = often, time.perf_counter()

    def due(self, step: int, steps: int) -> bool:
        """Whether the host looks at this step's results."""
        return self._often or step % SELDOM == 0 or step == steps

    def tell(
        self, index: int, step: int, least: Tensor, restarts: Tensor, evaluations: Tensor
    ) -> None:
        """One step of a phase.

        Args:
            index: which phase.
            step: from 1.
            least: (N,) the least distance of each image; infinite before there is one.
            restarts: how many have not fallen.
            evaluations: victim gradients so far.
        """
        if self._callback is None:
            return
        phase = self._phases[index]
        finite = least[least.isfinite()]
        self._callback(
            Progress(
                phase=phase.name,
                phase_index=index,
                phases=len(self._phases),
                step=step,
                steps=phase.steps,
                images=self._images,
                restarts=int(restarts),
                evaluations=int(evaluations),
                evaluations_planned=self._planned,
                distance=float(finite.mean()) if len(finite) else float("inf"),
                seconds=time.perf_counter() - self._began,
            )
        )


def planned_evaluations(phases: Sequence[Phase], restarts: int, selection: Measure) -> int:
    """Victim gradients of a whole run: those of every step and restart, and one more a restart
    to compare by another measure than the phase's own.
    """
    planned = 0
    for phase in phases:
        restarts = phase.begin.searches(restarts)
        planned += restarts * (phase.cost + (phase.measure != selection))
        restarts = min(restarts, phase.keep or restarts)
    return planned
