"""Optimisers: how a phase moves its variables. Each is a value that starts a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.leakage.representation import Observed

Variables = Mapping[str, Tensor]
"""What a phase searches, by name, all with the axes (R, B) in front."""


class Evaluated(NamedTuple):
    """What one evaluation of every restart tells an optimiser.

    Args:
        gradients: of the objective, like the variables; empty where none were asked for.
        objectives: (R,) in float64 on the CPU; infinite for a restart that was dropped.
    """

    gradients: Variables
    objectives: Tensor


Evaluate = Callable[[Variables], Evaluated]
"""The objective and its gradients at these variables."""


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """What an optimiser may ask for beside gradients.

    Args:
        draw: a fresh start in the phase's space: its whole state, variables included.
        images: (B, C, H, W) that one restart's variables or whole state show; differentiable.
        represent: what the victim's head is fed for images, (N, F); `gifd.leakage.representation`.
        observed: what it was fed for the private ones, read off the update with one restart's
            labels.
        rng: where all randomness comes from.
    """

    draw: Callable[[], Variables]
    images: Callable[[int, Variables], Tensor]
    represent: Callable[[Tensor], Tensor]
    observed: Callable[[int], Observed]
    rng: torch.Generator


class Schedule(ABC):
    """The learning rate over a phase, as a factor of its top."""

    @abstractmethod
    def __call__(self, t: float) -> float:
        """The factor at `t` in (0, 1], the share of the phase that is done after this step."""


@final
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same rate throughout."""

    def __call__(self, t: float) -> float:
        """Always 1."""
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Schedule):
    """Linear over the first `warmup` of the phase, half a cosine over its last `decay`.

    `min(1, t / warmup) * (1 - cos(pi * min(1, (1 - t) / decay))) / 2`

    Source: Karras et al., StyleGAN2, CVPR 2020, App. D (projection); GIFD, Sec. 4.1.
    """

    warmup: float = 1 / 20
    decay: float = 3 / 4

    def __call__(self, t: float) -> float:
        """In [0, 1]."""
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / self.decay))
        return min(1.0, t / self.warmup) * fall


@final
@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """Ten times less at each milestone.

    Source: Geiping et al., NeurIPS 2020, with the milestones 3/8, 5/8 and 7/8 of its code.
    """

    milestones: tuple[float, ...] = (3 / 8, 5 / 8, 7 / 8)
    factor: float = 0.1

    def __call__(self, t: float) -> float:
        """A power of the factor."""
        return self.factor ** sum(t > milestone for milestone in self.milestones)


class Optimizer(ABC):
    """A rule that moves variables; `start` binds it to one phase."""

    gradients: ClassVar[bool] = True
    """Whether it asks for gradients; without them an evaluation costs about a third."""
    evaluations_a_step: ClassVar[int] = 1
    """How often a step asks for the objective of each restart."""

    @abstractmethod
    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """A step function that moves `variables` in place, to be called `steps` times."""


@final
@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, element by element, hence each restart on its own.

    Args:
        lr: top learning rate.
        schedule: its course over the phase.
        signed: feed only the sign of the gradient (Inverting Gradients).
        noise: after a step, add `noise * rate * N(0, 1)` (Langevin dynamics, GradInversion).

    Source: Kingma and Ba, ICLR 2015; `torch.optim.Adam` does the step.

    Differs from the official code: the schedule is read at the end of a step instead of its
    start, so that the first evaluation is not spent on a learning rate of 0.
    """

    lr: float = 0.1
    schedule: Schedule = WarmupCosine()
    signed: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.noise < 0:
            raise InputError(
                f"expected lr > 0 and noise >= 0, got lr={self.lr}, noise={self.noise}"
            )

    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """Fresh moments, the schedule stretched over `steps`."""
        adam = torch.optim.Adam(list(variables.values()), lr=self.lr)
        done = 0

        def step(evaluate: Evaluate) -> None:
            nonlocal done
            gradients = evaluate(variables).gradients
            done += 1
            adam.param_groups[0]["lr"] = self.lr * self.schedule(done / steps)
            for name, variable in variables.items():
                variable.grad = gradients[name].sign() if self.signed else gradients[name]
            adam.step()
            for variable in variables.values():
                variable.grad = None
                if self.noise > 0:
                    drawn = torch.randn(variable.shape, generator=task.rng).to(variable)
                    variable.add_(drawn, alpha=self.noise * adam.param_groups[0]["lr"])

        return step


@final
@dataclass(frozen=True, kw_only=True)
class GradientRegularized(Optimizer):
    """AdamW on the signs of two gradients: here, and where a step from here would lead.

    `sign(g(h)) (1 - share) + sign(g(h')) share`, h' the probe, one AdamW step ahead of h. The
    moments see both. Among the solutions the flat ones, whose gradients agree, are preferred.

    Args:
        lr: top learning rate.
        schedule: its course over the phase.
        share: of the probe's gradient.
        decay: AdamW's weight decay.

    Source: Fan et al., FedLeak, USENIX Security 2025, arXiv:2506.08435, as its published code
    has it; `torch.optim.AdamW` does the step.
    """

    lr: float = 0.01
    schedule: Schedule = WarmupCosine(warmup=1e-9, decay=1.0)
    share: float = 0.3
    decay: float = 0.01

    evaluations_a_step = 2

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.share <= 1 or self.decay < 0:
            raise InputError(
                "expected lr > 0, share in [0, 1] and decay >= 0, got "
                f"lr={self.lr}, share={self.share}, decay={self.decay}"
            )

    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """Fresh moments, the schedule stretched over `steps`; draws nothing."""
        adam = torch.optim.AdamW(list(variables.values()), lr=self.lr, weight_decay=self.decay)
        done = 0

        def move(gradients: Variables) -> None:
            for name, variable in variables.items():
                variable.grad = gradients[name]
            adam.step()
            for variable in variables.values():
                variable.grad = None

        def step(evaluate: Evaluate) -> None:
            nonlocal done
            done += 1
            adam.param_groups[0]["lr"] = self.lr * self.schedule(done / steps)
            here = {n: g.sign() for n, g in evaluate(variables).gradients.items()}
            before = {name: variable.clone() for name, variable in variables.items()}
            move(here)
            ahead = {n: g.sign() for n, g in evaluate(variables).gradients.items()}
            for name, variable in variables.items():
                variable.copy_(before[name])
            move({n: torch.lerp(g, ahead[n], self.share) for n, g in here.items()})

        return step


@final
@dataclass(frozen=True, kw_only=True)
class LBFGS(Optimizer):
    """L-BFGS without a line search, each restart for itself.

    Args:
        lr: step length along the quasi-Newton direction.
        history: pairs of steps and gradient differences it remembers.

    The objective is divided by its first value, so that the solver's absolute thresholds do not
    hear the scale of an update.

    Source: Liu and Nocedal, Mathematical Programming 1989; `torch.optim.LBFGS` does the step.
    A step of ours is one evaluation: 20 of them are one call of an `LBFGS(max_iter=20)`.
    """

    lr: float = 1.0
    history: int = 100

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.history < 1:
            raise InputError(
                f"expected lr > 0 and history >= 1, got lr={self.lr}, history={self.history}"
            )

    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """An empty history; draws nothing."""
        restarts = range(len(next(iter(variables.values()))))
        leaves = [{n: v[r].clone() for n, v in variables.items()} for r in restarts]
        solvers = [
            torch.optim.LBFGS(list(own.values()), lr=self.lr, history_size=self.history, max_iter=1)
            for own in leaves
        ]

        scales: dict[int, float] = {}

        def step(evaluate: Evaluate) -> None:
            gradients, objectives = evaluate(variables)
            for r in restarts:
                value = float(objectives[r])
                if not math.isfinite(value):
                    continue
                scale = scales.setdefault(r, 1 / value if value > 0 else 1.0)
                for name, leaf in leaves[r].items():
                    leaf.grad = gradients[name][r] * scale
                    leaf.copy_(variables[name][r])
                solvers[r].step(lambda value=value * scale: value)  # type: ignore[no-untyped-call]
                for name, leaf in leaves[r].items():
                    variables[name][r] = leaf

        return step


@final
@dataclass(frozen=True)
class RandomSearch(Optimizer):
    """Every step draws afresh, each restart for itself; the engine remembers the best.

    It needs no gradients, and where they mislead far from the truth it finds a better start.
    """

    gradients = False

    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """The variables' own values are the first draw."""

        def step(evaluate: Evaluate) -> None:
            evaluate(variables)
            fresh = task.draw()
            for name, variable in variables.items():
                variable.copy_(fresh[name][: len(variable)])

        return step
