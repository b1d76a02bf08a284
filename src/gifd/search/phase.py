"""Phase: one search as a value, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor

from gifd.errors import InputError
from gifd.search.distances import Cosine, Distance
from gifd.search.initializers import Carried, Initializer
from gifd.search.measure import Measure
from gifd.search.optimizers import Adam, Optimizer
from gifd.search.population import Population
from gifd.search.projections import Projection
from gifd.search.regularizers import Regularizer
from gifd.search.spaces import Space

Keeps = Literal["best", "last"]
"""The evaluated iterate with the least distance, or the last one."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One search: where it begins and goes, how long, by which rule, within which limits.

    Args:
        name: for records and progress.
        space: what is searched.
        steps: evaluations of each restart, beside those of `begin`.
        begin: where it begins.
        optimizer: how variables move.
        distance: what makes a replayed update match.
        regularizers: penalties on the image, added to the distance in the objective only.
        constraints: variable name -> projection, applied after every step.
        curvature: width of the smoothed curvature of the replay, 0 for plain autograd.
        smoothing: width of the smoothed replay, 0 for the exact one.
        keeps: which iterate of each restart is its result and goes on to the next phase.
        keep: how many of the best restarts go on to the next phase; None keeps all.
    """

    name: str
    space: Space
    steps: int
    begin: Initializer = Carried()
    optimizer: Optimizer | Population = Adam()
    distance: Distance = Cosine()
    regularizers: tuple[Regularizer, ...] = ()
    constraints: Mapping[str, Projection] = field(default_factory=dict)
    curvature: float = 0.0
    smoothing: float = 0.0
    keeps: Keeps = "best"
    keep: int | None = None

    def __post_init__(self) -> None:
        widths = (self.curvature, self.smoothing)
        if self.keeps not in get_args(Keeps):
            raise InputError(
                f"expected phase '{self.name}' to keep 'best' or 'last', got '{self.keeps}'"
            )
        if (
            not isinstance(self.steps, int)
            or self.steps < 1
            or not min(widths) >= 0
            or (self.keep is not None and self.keep < 1)
        ):
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

    @property
    def cost(self) -> int:
        """Evaluations of each restart, its beginning included."""
        return self.begin.evaluations + self.steps

    def at_cost(self, evaluations: int) -> Phase:
        """The same phase for so many evaluations, dealt in its proportions; at least a step."""
        steps = max(1, round(evaluations * self.steps / self.cost))
        return replace(self, steps=steps, begin=self.begin.at_cost(evaluations - steps))


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseResult:
    """What one phase found for one observation.

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
        seconds: wall-clock time; of several observations at once each has an equal share.
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
