"""Schedules: the learning rate over a phase, relative to its peak."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final


class Schedule(ABC):
    """The learning rate over a phase, relative to its peak."""

    @abstractmethod
    def __call__(self, t: float) -> float:
        """The factor at `t` in (0, 1], the share of the phase done after this step."""


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
