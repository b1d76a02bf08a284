"""Optimisers: how a phase moves its variables. Each is a value that starts a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gifd.errors import InputError

Variables = Mapping[str, Tensor]
"""What a phase searches, by name, all with the axes (R, B) in front."""
Evaluate = Callable[[Variables], Variables]
"""Gradients of the objective at these variables; none for an optimiser that asks for none."""
Draw = Callable[[], Variables]
"""A fresh start in the phase's space."""


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

    @abstractmethod
    def start(self, variables: Variables, steps: int, draw: Draw) -> Callable[[Evaluate], None]:
        """A step function that moves `variables` in place, to be called `steps` times."""


@final
@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, element by element, hence each restart on its own.

    Args:
        lr: top learning rate.
        schedule: its course over the phase.
        signed: feed only the sign of the gradient (Inverting Gradients).

    Source: Kingma and Ba, ICLR 2015; `torch.optim.Adam` does the step.

    Differs from the official code: the schedule is read at the end of a step instead of its
    start, so that the first evaluation is not spent on a learning rate of 0.
    """

    lr: float = 0.1
    schedule: Schedule = WarmupCosine()
    signed: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"expected a positive learning rate, got {self.lr}")

    def start(self, variables: Variables, steps: int, draw: Draw) -> Callable[[Evaluate], None]:
        """Fresh moments, the schedule stretched over `steps`; draws nothing."""
        adam = torch.optim.Adam(list(variables.values()), lr=self.lr)
        done = 0

        def step(evaluate: Evaluate) -> None:
            nonlocal done
            gradients = evaluate(variables)
            done += 1
            adam.param_groups[0]["lr"] = self.lr * self.schedule(done / steps)
            for name, variable in variables.items():
                variable.grad = gradients[name].sign() if self.signed else gradients[name]
            adam.step()
            for variable in variables.values():
                variable.grad = None

        return step


@final
@dataclass(frozen=True)
class RandomSearch(Optimizer):
    """Every step draws afresh, each restart for itself; the engine remembers the best.

    It needs no gradients, and where they mislead far from the truth it finds a better start.
    """

    gradients = False

    def start(self, variables: Variables, steps: int, draw: Draw) -> Callable[[Evaluate], None]:
        """The variables' own values are the first draw."""

        def step(evaluate: Evaluate) -> None:
            evaluate(variables)
            fresh = draw()
            for name, variable in variables.items():
                variable.copy_(fresh[name][: len(variable)])

        return step
