"""The engine: one loop over phases that searches images whose update matches the observed one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import InputError, ModelError
from gifd.search.measure import Measure
from gifd.search.phase import Phase, PhaseResult, PhaseRun
from gifd.search.spaces import Setting


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a running attack stands, after each step: what a callback is told."""

    phase: str
    phase_index: int
    phases: int
    step: int
    steps: int
    restarts: int
    evaluations: int
    evaluations_planned: int
    distance: float
    seconds: float


Callback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """All that a run found: a result a phase, whether it was interrupted, which restarts fell."""

    phases: tuple[PhaseResult, ...]
    interrupted: bool
    dropped: tuple[int, ...]


def search(
    observation: Observation,
    labels: Tensor,
    phases: Sequence[Phase],
    setting: Setting,
    *,
    selection: Measure,
    callback: Callback | None = None,
    batched: bool | None = None,
) -> Search:
    """Run the phases one after the other, each from the iterates that the one before kept.

    A step evaluates, for each restart r with variables h_r,

        d_r = distance(replay(images(h_r), labels_r), observed),  both in a gradient's units,
        objective_r = d_r + sum of regularisers,

    and moves h_r along the objective's gradient. The iterate kept is the one with the least
    d_r, or the last one (`Phase.keeps`): never one chosen by comparison with the truth, which
    this function does not have.
    Ctrl-C ends the search with the best so far.

    Args:
        observation: what the server has.
        labels: (R, B) class indices that each restart's replay uses.
        phases: at least one.
        setting: prior, sizes and randomness.
        selection: the measure by which restarts and phases are compared.
        callback: told of every step.
        batched: all restarts in one vectorised call; None does so on accelerators only,
            where it is faster (on CPUs one by one is).

    Raises:
        InputError: no phases, or phases that cannot follow each other.
        ModelError: every restart became non-finite before any was finite.
    """
    if not phases:
        raise InputError("expected an attack with at least one phase, got none")
    if batched is None:
        batched = setting.model.device.type != "cpu"
    planned = planned_evaluations(phases, setting.restarts, selection)
    began = time.perf_counter()
    numbers = list(range(setting.restarts))
    results: list[PhaseResult] = []
    dropped: list[int] = []
    state = phases[0].space.start(setting)
    origin = phases[0].space
    for index, phase in enumerate(phases):
        state, origin = phase.space.enter(setting, origin, state), phase.space
        run = PhaseRun(phase, observation, labels[numbers], setting, state, numbers, batched)
        spent = sum(result.evaluations for result in results)
        interrupted = False
        try:
            for step in run:
                if callback is not None:
                    callback(
                        Progress(
                            phase=phase.name,
                            phase_index=index,
                            phases=len(phases),
                            step=step + 1,
                            steps=phase.steps,
                            restarts=len(run.alive),
                            evaluations=spent + run.evaluations,
                            evaluations_planned=planned,
                            distance=run.least,
                            seconds=time.perf_counter() - began,
                        )
                    )
        except KeyboardInterrupt:
            interrupted = True
        dropped += run.dropped
        if run.found:
            result, state, numbers = run.finish(selection)
            results.append(result)
        elif not results and not interrupted:
            raise ModelError(
                f"expected finite distances in phase '{phase.name}', got none from any of "
                f"{len(numbers)} restarts: check the model, the update and the learning rate"
            )
        if interrupted and not results:
            raise KeyboardInterrupt
        if interrupted or not run.found:
            return Search(phases=tuple(results), interrupted=interrupted, dropped=tuple(dropped))
    return Search(phases=tuple(results), interrupted=False, dropped=tuple(dropped))


def planned_evaluations(phases: Sequence[Phase], restarts: int, selection: Measure) -> int:
    """Victim gradients of a whole run: those of every step and restart, and one more a restart
    to compare by another measure than the phase's own.
    """
    planned = 0
    for phase in phases:
        steps = phase.steps * phase.optimizer.evaluations_a_step
        planned += restarts * (steps + (phase.measure != selection))
        restarts = 1 if phase.merge else min(restarts, phase.keep or restarts)
    return planned
