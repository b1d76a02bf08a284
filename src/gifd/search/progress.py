"""Progress of a running attack, for callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gifd.search.measure import Measure
from gifd.search.phase import Phase

SELDOM = 25
"""Steps between two reports on an accelerator, each of which makes the host wait for it."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a running attack.

    Args:
        phase, phase_index, phases: name of the phase, its index from 0, number of phases.
        step, steps: step from 1, and number of steps, of the phase; 0 while it begins.
        doing: what its beginning does at the moment; empty in a step.
        images: number of images attacked at once.
        restarts: active restarts of all images.
        evaluations, evaluations_planned: victim gradients over all phases, images and restarts.
        distance: the least so far in this phase, averaged over the images.
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
    doing: str = ""


Callback = Callable[[Progress], None]


@final
class Teller:
    """Reports steps to a callback: every step on a CPU, every 25th on an accelerator.

    Args:
        callback: None for no reports.
        phases, selection: of the run.
        images, restarts: at its beginning.
        often: whether to report every step.
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
        """Whether this step is reported."""
        return self._often or step % SELDOM == 0 or step == steps

    def begins(self, index: int, doing: str, restarts: Tensor, evaluations: float) -> None:
        """Report what the beginning of a phase does.

        Args:
            index: of the phase.
            doing: in words.
            restarts: number of active restarts.
            evaluations: victim gradients so far.
        """
        self._report(index, 0, torch.empty(0), restarts, evaluations, doing)

    def tell(
        self, index: int, step: int, least: Tensor, restarts: Tensor, evaluations: Tensor
    ) -> None:
        """Report one step.

        Args:
            index: of the phase.
            step: from 1.
            least: (N,) the least distance of each image; infinite if there is none yet.
            restarts: number of active restarts.
            evaluations: victim gradients so far.
        """
        self._report(index, step, least, restarts, evaluations, "")

    def _report(
        self,
        index: int,
        step: int,
        least: Tensor,
        restarts: Tensor,
        evaluations: Tensor | float,
        doing: str,
    ) -> None:
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
                doing=doing,
            )
        )


def planned_evaluations(phases: Sequence[Phase], restarts: int, selection: Measure) -> int:
    """Victim gradients of a whole run: one per step and restart, and one more per restart of a
    phase whose measure is not the selection measure.
    """
    planned = 0
    for phase in phases:
        restarts = phase.begin.searches(restarts)
        planned += restarts * (phase.cost + (phase.measure != selection))
        restarts = min(restarts, phase.keep or restarts)
    return planned
