"""The engine: one loop over phases that searches images whose update matches the observed one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value, vmap

from gifd.errors import InputError, ModelError
from gifd.inversion.curvature import smoothed_curvature
from gifd.inversion.distances import Cosine, Distance
from gifd.inversion.optimizers import Adam, Optimizer, Task, Variables
from gifd.inversion.projections import Projection
from gifd.inversion.regularizers import Regularizer
from gifd.inversion.spaces import Setting, Space
from gifd.observation import Observation
from gifd.priors.generator import State
from gifd.representation import observed_representations, representations


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
        keep: how many of the best restarts go on to the next phase; None keeps all.
    """

    name: str
    space: Space
    steps: int
    optimizer: Optimizer = Adam()
    distance: Distance = Cosine()
    regularizers: tuple[Regularizer, ...] = ()
    constraints: Mapping[str, Projection] = field(default_factory=dict)
    curvature: float = 0.0
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.curvature < 0 or (self.keep is not None and self.keep < 1):
            raise InputError(
                f"expected steps >= 1, curvature >= 0 and keep >= 1 in phase '{self.name}', got "
                f"steps={self.steps}, curvature={self.curvature}, keep={self.keep}"
            )


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
class PhaseResult:
    """What one phase found.

    Args:
        name: the phase's name.
        images: (B, C, H, W) in [0, 1], of the best iterate of the best restart.
        distance: that iterate's matching distance, by the run's common measure.
        curve: a row a step, a matching distance (the phase's own) a restart.
        restarts: the numbers, from 0, of the restarts that took part, in the curve's order.
        best_restart: the number of the one that won.
        dropped: the numbers of those that became non-finite here.
        evaluations: victim gradients computed.
        seconds: wall-clock time.
    """

    name: str
    images: Float[Tensor, "B C H W"]
    distance: float
    curve: tuple[tuple[float, ...], ...]
    restarts: tuple[int, ...]
    best_restart: int
    dropped: tuple[int, ...]
    evaluations: int
    seconds: float


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
    matching: Distance,
    callback: Callback | None = None,
    batched: bool | None = None,
) -> Search:
    """Run the phases one after the other, each from the best iterates of the one before.

    A step evaluates, for each restart r with variables h_r,

        d_r = distance(replay(images(h_r), labels), observed),
        objective_r = d_r + sum of regularisers,

    and moves h_r along the objective's gradient. The iterate kept is the one with the least
    d_r: never one chosen by comparison with the truth, which this function does not have.
    Ctrl-C ends the search with the best so far.

    Args:
        observation: what the server has.
        labels: (B,) class indices the replay uses.
        phases: at least one.
        setting: prior, sizes and randomness.
        matching: the measure by which phases are compared.
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
    planned = planned_evaluations(phases, setting.restarts, matching)
    began = time.perf_counter()
    numbers = list(range(setting.restarts))
    results: list[PhaseResult] = []
    dropped: list[int] = []
    state = phases[0].space.start(setting)
    origin = phases[0].space
    for index, phase in enumerate(phases):
        state, origin = phase.space.enter(setting, origin, state), phase.space
        run = _PhaseRun(phase, observation, labels, setting, state, numbers, batched)
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
            result, state, numbers = run.finish(matching)
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


def planned_evaluations(phases: Sequence[Phase], restarts: int, matching: Distance) -> int:
    """Victim gradients of a whole run: one a step and restart, one more to compare by another
    distance than the phase's own.
    """
    planned = 0
    for phase in phases:
        planned += restarts * (phase.steps + (phase.distance != matching))
        restarts = min(restarts, phase.keep or restarts)
    return planned


class _PhaseRun:
    """The loop of one phase and what it remembers: the best iterate of every restart."""

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

    def __iter__(self) -> _PhaseRun:
        space, setting, model = self.phase.space, self.setting, self.setting.model
        task = Task(
            draw=lambda: space.start(setting),
            images=lambda r, state: space.images(setting, {**_row(self.carried, r), **state}),
            represent=lambda images: representations(model, images),
            observed=lambda: observed_representations(self.observation, self.labels),
        )
        self._move = self.phase.optimizer.start(self.variables, self.phase.steps, task)
        self._step = -1
        return self

    def __next__(self) -> int:
        self._step += 1
        if self._step >= self.phase.steps or not self.alive:
            raise StopIteration
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

    def _objective(self, variables: Variables, carried: State) -> tuple[Tensor, Tensor]:
        """The objective and the distance of one restart: a pure function of tensors."""
        images = self.phase.space.images(self.setting, {**carried, **variables})
        with smoothed_curvature(self.phase.curvature):
            replayed = self.observation.replay(images, self.labels)
        distance = self.phase.distance(replayed, self.observation.update)
        objective = distance
        if self.phase.regularizers:
            inputs = self.setting.model.normalize(images)
            for regularizer in self.phase.regularizers:
                objective = objective + regularizer(inputs)
        return objective, distance

    def _slope(self, variables: Variables, carried: State) -> tuple[Variables, Tensor]:
        """One restart's gradients, where the optimiser asks for them, and its distance."""
        if not self.phase.optimizer.gradients:
            with torch.no_grad():
                return {}, self._objective(variables, carried)[1]
        if self.batched:
            gradients, (_, distance) = grad_and_value(self._objective, has_aux=True)(
                variables, carried
            )
            return gradients, distance
        # outside vmap plain autograd does the same, a tenth to a quarter faster
        leaves = {name: variable.detach().requires_grad_() for name, variable in variables.items()}
        objective, distance = self._objective(leaves, carried)
        if not objective.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}, distance
        slopes = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True)), distance

    def _evaluate(self, variables: Variables) -> Variables:
        """Gradients of all restarts; on the way, remember the best and drop the non-finite."""
        alive = self.alive
        ready = {name: variable[alive] for name, variable in variables.items()}
        carried = {name: tensor[alive] for name, tensor in self.carried.items()}
        if self.batched:
            gradients, distances = vmap(self._slope)(ready, carried)
        else:
            rows = [self._slope(_row(ready, r), _row(carried, r)) for r in range(len(alive))]
            gradients = {name: torch.stack([row[0][name] for row in rows]) for name in rows[0][0]}
            distances = torch.stack([row[1] for row in rows])
        self.evaluations += len(alive)
        distances = distances.detach().to("cpu", torch.float64)
        finite = torch.isfinite(distances)
        for gradient in gradients.values():
            finite &= torch.isfinite(gradient).flatten(1).all(1).cpu()

        row = torch.full((len(self.numbers),), torch.nan, dtype=torch.float64)
        row[alive] = distances
        self.curve.append(tuple(row.tolist()))
        full = {name: torch.zeros_like(variable) for name, variable in variables.items()}
        keeps_last = self.phase.optimizer.keeps == "last"
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
        return full

    def finish(self, matching: Distance) -> tuple[PhaseResult, State, list[int]]:
        """The phase's result, and the states and numbers of the restarts that go on."""
        going = [r for r in range(len(self.numbers)) if torch.isfinite(self.best_distance[r])]
        going = [r for r in going if self.numbers[r] not in self.dropped] or going
        measured = {r: float(self.best_distance[r]) for r in going}
        states = {r: self._state(r) for r in going}
        if matching != self.phase.distance:
            for r in going:
                measured[r] = self._measure(states[r], matching)
        going.sort(key=lambda r: measured[r])
        winner = going[0]
        with torch.no_grad():
            images = self.phase.space.images(self.setting, states[winner]).clamp(0, 1)
        result = PhaseResult(
            name=self.phase.name,
            images=images,
            distance=measured[winner],
            curve=tuple(self.curve),
            restarts=tuple(self.numbers),
            best_restart=self.numbers[winner],
            dropped=tuple(self.dropped),
            evaluations=self.evaluations,
            seconds=time.perf_counter() - self.began,
        )
        kept = sorted(going[: self.phase.keep])
        names = [*self.carried, *self.best]
        state = {name: torch.stack([states[r][name] for r in kept]) for name in names}
        return result, state, [self.numbers[r] for r in kept]

    def _state(self, r: int) -> State:
        return {**_row(self.carried, r), **_row(self.best, r)}

    def _measure(self, state: State, matching: Distance) -> float:
        """The common distance of one iterate: one more gradient of the victim, no search."""
        self.evaluations += 1
        with torch.no_grad():
            images = self.phase.space.images(self.setting, state)
        replayed = self.observation.replay(images, self.labels).detach()
        return float(matching(replayed, self.observation.update))


def _row(state: State, r: int) -> State:
    return {name: tensor[r] for name, tensor in state.items()}
