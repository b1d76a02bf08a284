"""The loop: run the phases of an attack one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import InputError, ModelError
from gifd.search.evaluation import stacked
from gifd.search.journal import Journal, Stand
from gifd.search.measure import Measure
from gifd.search.objective import Comparison
from gifd.search.phase import Phase, PhaseResult
from gifd.search.progress import Callback, Teller
from gifd.search.run import PhaseRun
from gifd.search.spaces import Draw, SearchContext, drawn
from gifd.search.standing import Standing


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """The result of a run for one observation.

    Args:
        results: one per phase; empty if nothing was finite.
        dropped: restarts that became non-finite.
        interrupted: whether Ctrl-C ended the run.
    """

    results: tuple[PhaseResult, ...]
    dropped: tuple[int, ...]
    interrupted: bool

    @property
    def phases(self) -> tuple[PhaseResult, ...]:
        """The results, of which there is at least one.

        Raises:
            ModelError: there are none.
        """
        if not self.results:
            raise ModelError(
                f"expected finite distances, got none from any of {len(self.dropped)} restarts: "
                "check the model, the update and the learning rate"
            )
        return self.results


def search(
    observations: Sequence[Observation],
    labels: Shaped[Tensor, "N R B *T"],
    phases: Sequence[Phase],
    context: SearchContext,
    *,
    selection: Measure,
    draws: Sequence[Draw],
    callback: Callback | None = None,
    batched: bool | None = None,
    journal: Journal | None = None,
) -> list[Search]:
    """Run the phases one after the other; each begins at the iterates that the last one kept.

    A step evaluates, for each image and restart with variables h,

        d = distance(replay(images(h), labels), observed),  both in a gradient's units,
        objective = d + sum of regularisers,

    and moves h along the objective's gradient. Each search keeps the iterate of least d, or the
    last one (`Phase.keeps`). Ctrl-C ends the run with the best result so far.

    Args:
        observations: N observations of one model.
        labels: for the replay of each restart.
        phases: at least one.
        context: prior and sizes.
        selection: the measure by which restarts and phases are compared.
        draws: one per observation.
        callback: receives the progress.
        batched: run all searches in one vectorised call; None does so on accelerators only (on
            CPUs one by one is faster).
        journal: keeps the run after each phase; one that was interrupted goes on from there.

    Raises:
        InputError: no phases, phases that cannot follow each other, or the journal of another run.
        KeyboardInterrupt: before anything was found.
    """
    if not phases:
        raise InputError("expected an attack with at least one phase, got none")
    on_cpu = context.model.device.type == "cpu"
    vectorised = not on_cpu if batched is None else batched
    comparisons = [Comparison(observation) for observation in observations]
    targets = [comparison.target for comparison in comparisons]
    together = stacked(observations, targets) if vectorised else None
    images, restarts = labels.shape[:2]
    teller = Teller(callback, phases, selection, images, restarts, often=on_cpu)
    results: list[list[PhaseResult]] = [[] for _ in observations]
    dropped: list[list[int]] = [[] for _ in observations]
    stand = None if journal is None else journal.read(phases, draws, labels)
    if stand is None:
        standing, done = _drawn(phases[0], context, draws, labels), 0
    else:
        standing, done = stand.standing, stand.done
        results, dropped = stand.results, stand.dropped
    interrupted = False
    for index, phase in enumerate(phases[done:], start=done):
        run = PhaseRun(phase, context, observations, comparisons, draws, vectorised, together)
        spent = sum(result.evaluations for own in results for result in own)
        interrupted = _cut_short(run, standing, teller, index, spent)
        if run.began:
            standing, found = run.finish(selection)
            for n, result in enumerate(found):
                results[n] += [result] if result else []
                dropped[n] += [r for r in run.dropped(n) if r not in dropped[n]]
        if interrupted and not any(results):
            raise KeyboardInterrupt
        if interrupted or not bool(standing.alive.any()):
            break
        if journal is not None and index + 1 < len(phases):
            stand = Stand(done=index + 1, standing=standing, results=results, dropped=dropped)
            journal.write(stand, phases, draws)
    if journal is not None and not interrupted:
        journal.remove()
    return [
        Search(results=tuple(own), dropped=tuple(fell), interrupted=interrupted)
        for own, fell in zip(results, dropped, strict=True)
    ]


def _cut_short(run: PhaseRun, standing: Standing, teller: Teller, index: int, spent: int) -> bool:
    """Search one phase, the host looking now and then; whether Ctrl-C cut it short."""
    steps, alive = run.phase.steps, standing.alive
    planned = float(alive.sum()) * run.phase.begin.evaluations

    def tell(doing: str, share: float) -> None:
        teller.begins(index, doing, alive.sum(), spent + share * planned)

    try:
        run.begin(standing, tell)
        for step, seen in enumerate(run, start=1):
            if teller.due(step, steps):
                evaluations = spent + run.evaluations.sum()
                teller.tell(index, step, run.least, run.alive.sum(), evaluations)
                if not bool(seen.finite.any()):
                    break
    except KeyboardInterrupt:
        return True
    return False


def _drawn(
    phase: Phase, context: SearchContext, draws: Sequence[Draw], labels: Shaped[Tensor, "N R B *T"]
) -> Standing:
    """Random states of the first phase."""
    images, restarts, device = *labels.shape[:2], context.model.device
    return Standing(
        space=phase.space,
        state=drawn(phase.space, context, draws),
        labels=labels,
        numbers=torch.arange(restarts, device=device).expand(images, -1),
        alive=torch.ones(images, restarts, dtype=torch.bool, device=device),
        distance=torch.zeros(images, restarts, device=device),
    )
