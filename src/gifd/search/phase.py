"""One phase: what it searches and how, the loop over its steps, and what it found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value, vmap

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.leakage.representation import observed_representations, representations
from gifd.priors.generator import State
from gifd.search.comparison import Comparison
from gifd.search.consensus import consensus
from gifd.search.curvature import smoothed_curvature
from gifd.search.distances import Cosine, Distance
from gifd.search.measure import Measure
from gifd.search.optimizers import Adam, Evaluated, Optimizer, Task, Variables
from gifd.search.projections import Projection
from gifd.search.regularizers import Candidate, GroupConsistency, Regularizer
from gifd.search.smoothing import smoothed_replay
from gifd.search.spaces import Setting, Space

Keeps = Literal["best", "last"]
"""The evaluated iterate with the least distance, or the last one."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One search: where, how long, by which rule, within which limits, towards what.

    Args:
        name: for records and progress.
        space: what is searched.
        steps: evaluations of each restart.
        optimizer: how variables move.
        distance: what makes a replayed update match.
        regularizers: penalties on the image, added to the distance in the objective only.
        constraints: variable name -> projection, applied after every step.
        curvature: width of the smoothed curvature of the replay, 0 for plain autograd.
        smoothing: width of the smoothed replay, 0 for the exact one.
        keeps: which iterate of each restart is its result and goes on to the next phase.
        keep: how many of the best restarts go on to the next phase; None keeps all.
        merge: whether those that go on go on as one, from their consensus.
    """

    name: str
    space: Space
    steps: int
    optimizer: Optimizer = Adam()
    distance: Distance = Cosine()
    regularizers: tuple[Regularizer, ...] = ()
    constraints: Mapping[str, Projection] = field(default_factory=dict)
    curvature: float = 0.0
    smoothing: float = 0.0
    keeps: Keeps = "best"
    keep: int | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        widths = (self.curvature, self.smoothing)
        if self.steps < 1 or min(widths) < 0 or (self.keep is not None and self.keep < 1):
            raise InputError(
                f"expected steps >= 1, curvature >= 0, smoothing >= 0 and keep >= 1 in phase "
                f"'{self.name}', got steps={self.steps}, curvature={self.curvature}, "
                f"smoothing={self.smoothing}, keep={self.keep}"
            )
        if min(widths) > 0:
            raise InputError(
                f"expected smoothed curvature or a smoothed replay in phase '{self.name}', got both"
            )

    @property
    def measure(self) -> Measure:
        """What its curve is of, and its iterates are kept by."""
        return Measure(distance=self.distance, smoothing=self.smoothing)


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseResult:
    """What one phase found.

    Args:
        name: the phase's name.
        images: (B, C, H, W) in [0, 1], of the iterate that the best restart kept.
        labels: (B,) those it was replayed with; of soft labels the likeliest.
        distance: that iterate's matching distance, by the run's selection measure.
        curve: a row a step, a matching distance by `measure` a restart.
        measure: the phase's own.
        restarts: the numbers, from 0, of the restarts that took part, in the curve's order.
        best_restart: the number of the one that won.
        dropped: the numbers of those that became non-finite here.
        evaluations: victim gradients computed.
        seconds: wall-clock time.
    """

    name: str
    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, "B"]
    distance: float
    curve: tuple[tuple[float, ...], ...]
    measure: Measure
    restarts: tuple[int, ...]
    best_restart: int
    dropped: tuple[int, ...]
    evaluations: int
    seconds: float


class PhaseRun:
    """The loop of one phase and what it remembers: the iterate to keep of every restart.

    Args:
        phase: what to do.
        observation, setting, batched: as `search` has them.
        labels: (R, B) that each restart is replayed with.
        state: where each restart begins.
        numbers: of the restarts.
    """

    def __init__(
        self,
        phase: Phase,
        observation: Observation,
        labels: Tensor,
        setting: Setting,
        state: State,
        numbers: list[int],
        batched: bool,
    ) -> None:
        self.phase, self.setting, self.numbers, self.batched = phase, setting, numbers, batched
        self.observation, self.labels = observation, labels
        names = phase.space.searched(setting)
        self.variables = {name: state[name].detach().clone() for name in names}
        self.carried = {n: t.detach() for n, t in state.items() if n not in self.variables}
        self.entry = {name: variable.clone() for name, variable in self.variables.items()}
        self.best = {name: variable.clone() for name, variable in self.variables.items()}
        self.best_distance = torch.full((len(numbers),), torch.inf, dtype=torch.float64)
        self.alive = list(range(len(numbers)))
        self.dropped: list[int] = []
        self.curve: list[tuple[float, ...]] = []
        self.consensus: Tensor | None = None
        self.compare = Comparison(observation)
        self.evaluations = 0
        self.began = time.perf_counter()

    @property
    def found(self) -> bool:
        """Whether any iterate had a finite distance."""
        return bool(torch.isfinite(self.best_distance).any())

    @property
    def least(self) -> float:
        """The least distance so far."""
        return float(self.best_distance.min())

    def __iter__(self) -> PhaseRun:
        space, setting, model = self.phase.space, self.setting, self.setting.model
        task = Task(
            draw=lambda: space.start(setting),
            images=lambda r, state: space.images(setting, {**_row(self.carried, r), **state}),
            represent=lambda images: representations(model, images),
            observed=lambda r: observed_representations(self.observation, self.labels[r]),
            rng=setting.rng,
        )
        self._move = self.phase.optimizer.start(self.variables, self.phase.steps, task)
        self._step = -1
        return self

    def __next__(self) -> int:
        self._step += 1
        if self._step >= self.phase.steps or not self.alive:
            raise StopIteration
        self._confer()
        charged = self.evaluations + len(self.alive)
        self._move(self._evaluate)
        self.evaluations = max(self.evaluations, charged)
        with torch.no_grad():
            for name, projection in self.phase.constraints.items():
                self.variables[name].copy_(projection(self.variables[name], self.entry[name]))
            clipped = self.phase.space.clip(self.setting, self.variables)
            for name, variable in self.variables.items():
                if clipped[name] is not variable:
                    variable.copy_(clipped[name])
        return self._step

    def _confer(self) -> None:
        """Let the restarts agree on an image, where a regulariser wants them to."""
        for group in self.phase.regularizers:
            if isinstance(group, GroupConsistency) and group.due(self._step, self.phase.steps):
                with torch.no_grad():
                    shown = [
                        self.setting.model.normalize(
                            self.phase.space.images(
                                self.setting,
                                {**_row(self.carried, r), **_row(self.variables, r)},
                            )
                        )
                        for r in self.alive
                    ]
                    finite = [inputs for inputs in shown if bool(torch.isfinite(inputs).all())]
                    if finite:
                        self.consensus = group.consensus(torch.stack(finite))

    def _objective(
        self, variables: Variables, carried: State, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The objective of one restart and the distance to choose by: pure functions of tensors."""
        state = {**carried, **variables}
        images = self.phase.space.images(self.setting, state)
        labels = self.phase.space.labels(state, known)
        with smoothed_curvature(self.phase.curvature), smoothed_replay(self.phase.smoothing):
            replayed = self.observation.replay(images, labels)
        objective, distance = self.compare(self.phase.distance, replayed)
        if self.phase.regularizers:
            candidate = Candidate(
                inputs=self.setting.model.normalize(images),
                state=state,
                observation=self.observation,
                consensus=self.consensus,
            )
            for regularizer in self.phase.regularizers:
                objective = objective + regularizer(candidate)
        return objective, distance

    def _slope(
        self, variables: Variables, carried: State, known: Tensor
    ) -> tuple[Variables, Tensor, Tensor]:
        """One restart's gradients, where the optimiser asks for them, objective and distance."""
        if not self.phase.optimizer.gradients:
            with torch.no_grad():
                return {}, *self._objective(variables, carried, known)
        if self.batched:
            slope = grad_and_value(self._objective, has_aux=True)
            gradients, (objective, distance) = slope(variables, carried, known)
            return gradients, objective, distance
        # outside vmap plain autograd does the same, a tenth to a quarter faster
        leaves = {name: variable.detach().requires_grad_() for name, variable in variables.items()}
        objective, distance = self._objective(leaves, carried, known)
        if not objective.requires_grad:
            flat = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
            return flat, objective, distance
        slopes = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True)), objective.detach(), distance

    def _evaluate(self, variables: Variables) -> Evaluated:
        """Objectives and gradients; on the way, remember the best and drop the non-finite."""
        alive = self.alive
        full = {name: torch.zeros_like(variable) for name, variable in variables.items()}
        values = torch.full((len(self.numbers),), torch.inf, dtype=torch.float64)
        if not alive:  # the last fell within this step
            return Evaluated(gradients=full, objectives=values)
        ready = {name: variable[alive] for name, variable in variables.items()}
        carried = {name: tensor[alive] for name, tensor in self.carried.items()}
        known = self.labels[alive]
        if self.batched:
            gradients, objectives, distances = vmap(self._slope)(ready, carried, known)
        else:
            rows = [
                self._slope(_row(ready, r), _row(carried, r), known[r]) for r in range(len(alive))
            ]
            gradients = {name: torch.stack([row[0][name] for row in rows]) for name in rows[0][0]}
            objectives = torch.stack([row[1] for row in rows])
            distances = torch.stack([row[2] for row in rows])
        self.evaluations += len(alive)
        distances = distances.detach().to("cpu", torch.float64)
        finite = torch.isfinite(distances)
        for gradient in gradients.values():
            finite &= torch.isfinite(gradient).flatten(1).all(1).cpu()

        row = torch.full((len(self.numbers),), torch.nan, dtype=torch.float64)
        row[alive] = distances
        self.curve.append(tuple(row.tolist()))
        keeps_last = self.phase.keeps == "last"
        for position, r in enumerate(alive):
            if not finite[position]:
                self.dropped.append(self.numbers[r])
                continue
            for name, gradient in gradients.items():
                full[name][r] = gradient[position]
            if distances[position] < self.best_distance[r] or keeps_last:
                self.best_distance[r] = distances[position]
                for name, variable in variables.items():
                    self.best[name][r] = variable[r]
        self.alive = [r for position, r in enumerate(alive) if finite[position]]
        values[alive] = objectives.detach().to("cpu", torch.float64)
        return Evaluated(gradients=full, objectives=values)

    def finish(self, selection: Measure) -> tuple[PhaseResult, State, list[int]]:
        """The phase's result, and the states and numbers of the restarts that go on."""
        going = [r for r in range(len(self.numbers)) if torch.isfinite(self.best_distance[r])]
        going = [r for r in going if self.numbers[r] not in self.dropped] or going
        measured = {r: float(self.best_distance[r]) for r in going}
        states = {r: self._state(r) for r in going}
        if selection != self.phase.measure:
            for r in going:
                measured[r] = self._measure(r, states[r], selection)
        going.sort(key=lambda r: measured[r])
        winner = going[0]
        with torch.no_grad():
            images = self.phase.space.images(self.setting, states[winner]).clamp(0, 1)
            labels = self.phase.space.labels(states[winner], self.labels[winner])
        result = PhaseResult(
            name=self.phase.name,
            images=images,
            labels=labels if labels.ndim == 1 else labels.argmax(1),
            distance=measured[winner],
            curve=tuple(self.curve),
            measure=self.phase.measure,
            restarts=tuple(self.numbers),
            best_restart=self.numbers[winner],
            dropped=tuple(self.dropped),
            evaluations=self.evaluations,
            seconds=time.perf_counter() - self.began,
        )
        kept = going[: self.phase.keep]
        if self.phase.merge:
            with torch.no_grad():
                shown = [self.phase.space.images(self.setting, states[r]) for r in kept]
            one = consensus([states[r] for r in kept], torch.stack(shown), self.labels[kept])
            return result, {n: t[None] for n, t in one.items()}, [self.numbers[winner]]
        kept.sort()
        names = [*self.carried, *self.best]
        state = {name: torch.stack([states[r][name] for r in kept]) for name in names}
        return result, state, [self.numbers[r] for r in kept]

    def _state(self, r: int) -> State:
        return {**_row(self.carried, r), **_row(self.best, r)}

    def _measure(self, r: int, state: State, selection: Measure) -> float:
        """The distance of one iterate by the run's measure: one more gradient of the victim."""
        self.evaluations += 1
        with torch.no_grad():
            images = self.phase.space.images(self.setting, state)
            labels = self.phase.space.labels(state, self.labels[r])
        with smoothed_replay(selection.smoothing):
            replayed = self.observation.replay(images, labels).detach()
        return float(self.compare(selection.distance, replayed)[1])


def _row(state: State, r: int) -> State:
    return {name: tensor[r] for name, tensor in state.items()}
