"""Run: one phase from its beginning to its result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.priors.generator import State
from gifd.search.evaluation import Evaluation
from gifd.search.evolution import evolve
from gifd.search.initializers import Beginning, Tell, untold
from gifd.search.keeping import Kept
from gifd.search.measure import Measure
from gifd.search.objective import Comparison, Objective, Target
from gifd.search.phase import Phase, PhaseResult
from gifd.search.population import Population
from gifd.search.regularizers import GroupConsistency
from gifd.search.spaces import Draw, SearchContext
from gifd.search.standing import Standing, apart, flat
from gifd.search.step import Groups, Seen, descend
from gifd.search.variables import Layout


@final
class PhaseRun:
    """One phase of N images with R searches each.

    Args:
        phase: the phase.
        context, observations, draws, batched: see `search`.
        comparisons: one per observation.
        together: their stacked targets, if all are evaluated in one call.
    """

    def __init__(
        self,
        phase: Phase,
        context: SearchContext,
        observations: Sequence[Observation],
        comparisons: Sequence[Comparison],
        draws: Sequence[Draw],
        batched: bool,
        together: Target | None,
    ) -> None:
        self._together = together
        self.phase, self.context, self._batched = phase, context, batched
        self._observations, self._comparisons, self._draws = observations, comparisons, draws
        self._since = time.perf_counter()
        self._rows: list[Tensor] = []
        self._groups: Groups = [None] * len(observations)
        self.began = False

    # -- its beginning -----------------------------------------------------------------

    def begin(self, before: Standing, tell: Tell = untold) -> None:
        """Run the initialiser."""

        def values(state: State) -> Tensor:
            layout = Layout.of(state, self.phase.space.searched(self.context))
            evaluation = self._evaluation(layout, state, before.labels)
            return evaluation.values(layout.pack(state), before.alive).distance

        pairs = zip(self._draws, before.numbers.cpu(), strict=True)
        draws = [draw.of(numbers) for draw, numbers in pairs]
        self.standing = self.phase.begin(
            Beginning(
                context=self.context,
                space=self.phase.space,
                before=before,
                observations=self._observations,
                draws=draws,
                values=values,
                tell=tell,
            )
        )
        state = {name: tensor.detach() for name, tensor in self.standing.state.items()}
        self._layout = Layout.of(state, self.phase.space.searched(self.context))
        missing = [name for name in self.phase.constraints if name not in self._layout.shapes]
        if missing:
            raise InputError(
                f"expected constraints on what phase '{self.phase.name}' searches "
                f"({', '.join(self._layout.shapes)}), got '{missing[0]}'"
            )
        self._carried = {n: t for n, t in state.items() if n not in self._layout.shapes}
        self._entry = self._layout.pack(state)
        self._entries = flat(self._layout.unpack(self._entry))
        self.kept = Kept.nothing(self._entry)
        self.alive = self.standing.alive
        self.evaluations = self.alive.sum(1) * self.phase.begin.evaluations  # (N,)
        self.began = True

    # -- its course --------------------------------------------------------------------

    def __iter__(self) -> Iterator[Seen]:
        """Yield the results of each step, after updating what is kept."""
        for seen in self._explore():
            self.kept = self.kept.after(seen, self.phase.keeps)
            self.alive = seen.finite
            self.evaluations = self.evaluations + seen.evaluated.sum(1)
            self._rows.append(seen.distance)
            yield seen

    def _explore(self) -> Iterator[Seen]:
        evaluation = self._evaluation(self._layout, self._carried, self.standing.labels)
        rule, x, alive, steps = self.phase.optimizer, self._entry, self.alive, self.phase.steps
        if isinstance(rule, Population):
            count = (x.shape[1],)
            seeds = [torch.randint(2**31, count, generator=d.rng).tolist() for d in self._draws]
            return evolve(evaluation, rule, x, alive, steps, seeds=seeds)
        return descend(
            evaluation,
            rule,
            x,
            alive,
            steps,
            limit=self._limited,
            normal=self._normal,
            confer=self._confer,
        )

    def _limited(self, x: Float[Tensor, "N R M"]) -> Float[Tensor, "N R M"]:
        """Project onto the constraints of the phase and its space."""
        variables = flat(self._layout.unpack(x))
        limited = dict(variables)
        for name, projection in self.phase.constraints.items():
            limited[name] = projection(limited[name], self._entries[name])
        limited = dict(self.phase.space.clip(self.context, limited))
        if all(limited[name] is variables[name] for name in variables):
            return x
        return self._layout.pack(apart(limited, len(x)))

    def _normal(self) -> Float[Tensor, "N R M"]:
        """Standard normal noise for each variable, from each image's own generator."""
        drawn = []
        for draw in self._draws:
            own = {
                name: torch.randn(self._entry.shape[1], *shape, generator=draw.rng)
                for name, shape in self._layout.shapes.items()
            }
            drawn.append(self._layout.pack(own))
        return torch.stack(drawn).to(self._entry)

    def _confer(self, step: int, x: Tensor, alive: Tensor) -> Groups:
        """The mean of each image's restarts, updated when `GroupConsistency` is due."""
        for group in self.phase.regularizers:
            if isinstance(group, GroupConsistency) and group.due(step, self.phase.steps):
                with torch.no_grad():
                    state = flat({**self._carried, **self._layout.unpack(x)})
                    shown = self.phase.space.pictures(self.context, state)
                    inputs = self.context.model.normalize(shown)
                    inputs = inputs.reshape(*x.shape[:2], *inputs.shape[1:])
                finite = alive & inputs.flatten(2).isfinite().all(2)
                means: list[Tensor | None] = []
                for own, going, last in zip(inputs, finite, self._groups, strict=True):
                    fallen = torch.zeros_like(own[0]) if last is None else last  # nobody reads it
                    means.append(group.mean(own[going]) if bool(going.any()) else fallen)
                self._groups = means
        return self._groups

    def _evaluation(
        self, layout: Layout, carried: State, labels: Tensor, phase: Phase | None = None
    ) -> Evaluation:
        """The objectives of the phase, or of one that measures in another way."""
        pairs = zip(self._observations, self._comparisons, strict=True)
        return Evaluation(
            [self._objective(phase or self.phase, *each) for each in pairs],
            layout,
            {name: tensor for name, tensor in carried.items() if name not in layout.shapes},
            labels,
            self._batched,
            self._together,
        )

    def _objective(
        self, phase: Phase, observation: Observation, comparison: Comparison
    ) -> Objective:
        return Objective(
            context=self.context,
            space=phase.space,
            observation=observation,
            comparison=comparison,
            distance=phase.distance,
            regularizers=phase.regularizers,
            curvature=phase.curvature,
            smoothing=phase.smoothing,
        )

    # -- how it stands, and its end ------------------------------------------------------

    @property
    def least(self) -> Float[Tensor, "N"]:
        """The least distance of each image so far; infinite if there is none yet."""
        return self.kept.distance.amin(1)

    def dropped(self, n: int) -> tuple[int, ...]:
        """The restarts of one image that became non-finite in this phase."""
        fell = self.standing.alive[n] & ~self.alive[n]
        return tuple(self.standing.numbers[n][fell].tolist())

    def finish(self, selection: Measure) -> tuple[Standing, list[PhaseResult | None]]:
        """The searches that continue, and the result for each image.

        The first Ctrl-C in here restarts it, so that no result is lost.
        """
        try:
            return self._finished(selection)
        except KeyboardInterrupt:
            return self._finished(selection)

    def _finished(self, selection: Measure) -> tuple[Standing, list[PhaseResult | None]]:
        found = self.kept.distance.isfinite()
        going = found & self.alive
        going = torch.where(going.any(1, keepdim=True), going, found)
        state = {**self._carried, **self._layout.unpack(self.kept.x)}
        distance, evaluated = self.kept.distance, self.evaluations
        if selection != self.phase.measure:
            distance = self._measured(selection, going)
            evaluated = evaluated + going.sum(1)
            going = going & distance.isfinite()
        ended = replace(
            self.standing,
            state=state,
            alive=going,
            distance=distance.masked_fill(~going, torch.inf),
        )
        best_first = ended.best_first()
        results = self._results(ended.chosen(best_first[:, :1]), ended, going, evaluated)
        kept = best_first[:, : self.phase.keep].sort(1).values
        return ended.chosen(kept), results

    def _measured(self, selection: Measure, going: Tensor) -> Tensor:
        """The kept iterates' distance by the run's measure: one more victim gradient each."""
        phase = replace(
            self.phase,
            distance=selection.distance,
            smoothing=selection.smoothing,
            curvature=0.0,
            regularizers=(),
        )
        labels = self.standing.labels
        evaluation = self._evaluation(self._layout, self._carried, labels, phase)
        return evaluation.values(self.kept.x, going).distance

    def _results(
        self, best: Standing, ended: Standing, going: Tensor, evaluated: Tensor
    ) -> list[PhaseResult | None]:
        with torch.no_grad():
            shown = self.phase.space.pictures(self.context, flat(best.state)).clamp(0, 1)
            agreements = self._agreements(shown, ended, going)
        curve = torch.stack(self._rows).cpu().double() if self._rows else None  # (T, N, R)
        seconds = (time.perf_counter() - self._since) / len(shown)
        entered, numbers = self.standing.alive, self.standing.numbers
        results: list[PhaseResult | None] = []
        for n, images in enumerate(shown):
            if curve is None or not bool(going[n].any()):
                results.append(None)
                continue
            own = {name: tensor[n, 0] for name, tensor in best.state.items()}
            known = best.labels[n, 0]
            labels = self.phase.space.labels(own, known)
            took_part = entered[n].cpu()
            results.append(
                PhaseResult(
                    name=self.phase.name,
                    images=images.clone(),
                    labels=labels if labels.dtype == known.dtype else labels.argmax(1),
                    distance=float(best.distance[n, 0]),
                    curve=tuple(map(tuple, curve[:, n, took_part].tolist())),
                    measure=self.phase.measure,
                    restarts=tuple(numbers[n][entered[n]].tolist()),
                    best_restart=int(best.numbers[n, 0]),
                    dropped=self.dropped(n),
                    agreement=agreements[n],
                    evaluations=int(evaluated[n]),
                    seconds=seconds,
                )
            )
        return results

    def _agreements(
        self, best: Float[Tensor, "N B C H W"], ended: Standing, going: Tensor
    ) -> list[float | None]:
        """The mean PSNR of the other restarts' images to the best one's, for each observation."""
        if going.shape[1] == 1:
            return [None] * len(best)
        places = torch.arange(going.shape[1], device=going.device).expand(len(best), -1)
        each = [
            flat(ended.chosen(own).state) for own in torch.split(places, 1, dim=1)
        ]  # no more memory
        shown = [self.phase.space.pictures(self.context, own).clamp(0, 1) for own in each]
        errors = torch.stack([(own - best).square().flatten(1).mean(1) for own in shown], 1)
        decibels = -10 * errors.clamp_min(1e-12).log10()
        found: list[float | None] = []
        for n, own in enumerate(decibels):
            others = going[n].clone()
            others[own.masked_fill(~others, -torch.inf).argmax()] = False  # the best one itself
            found.append(float(own[others].mean()) if bool(others.any()) else None)
        return found
