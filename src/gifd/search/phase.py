"""Phase: one search as a value, and its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from jaxtyping import Float, Shaped
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
"""Keep the evaluated iterate of least distance, or the last one."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One search: space, budget, initialiser, optimiser, objective and constraints.

    Args:
        name: for records and progress.
        space: the search space.
        steps: evaluations per restart, without those of `begin`.
        begin: where the phase begins.
        optimizer: updates the variables.
        distance: matching distance between the replayed and the observed update.
        regularizers: penalties on the image, added to the distance in the objective only.
        constraints: variable name -> projection, applied after every step.
        curvature: width of the replay's smoothed curvature; 0 for plain autograd.
        smoothing: width of the smoothed replay; 0 for the exact one.
        keeps: which iterate of each restart is its result and begins the next phase.
        keep: how many of the best restarts enter the next phase; None keeps all.
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
            or not all(0 <= width < math.inf for width in widths)
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
        """The measure of its curve, by which iterates are kept."""
        return Measure(distance=self.distance, smoothing=self.smoothing)

    @property
    def cost(self) -> int:
        """Evaluations per restart, including those of `begin`."""
        return self.begin.evaluations + self.steps

    def at_cost(self, evaluations: int) -> Phase:
        """The same phase with this many evaluations, in its proportions; at least one step.

        One step after a costly beginning only judges it, and remains one.
        """
        judges = self.steps == 1 and self.begin.evaluations > 0
        steps = 1 if judges else max(1, round(evaluations * self.steps / self.cost))
        return replace(self, steps=steps, begin=self.begin.at_cost(evaluations - steps))


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseResult:
    """The result of one phase for one observation.

    Args:
        name: the phase's name.
        images: (B, C, H, W) in [0, 1], of the iterate that the best restart kept.
        labels: (B,) the labels of its replay; of soft labels the likeliest.
        distance: that iterate's matching distance, by the run's selection measure.
        curve: matching distances by `measure`; one row per step, one column per restart.
        measure: the phase's own.
        restarts: numbers of the restarts that took part, from 0, in the order of the columns.
        best_restart: number of the best restart.
        dropped: numbers of the restarts that became non-finite in this phase.
        agreement: mean PSNR of the other restarts' images to the best one's, in dB; None with one.
        evaluations: victim gradients computed.
        seconds: wall-clock time; several observations at once share it equally.
    """

    name: str
    images: Float[Tensor, "B C H W"]
    labels: Shaped[Tensor, "B *T"]
    distance: float
    curve: tuple[tuple[float, ...], ...]
    measure: Measure
    restarts: tuple[int, ...]
    best_restart: int
    dropped: tuple[int, ...]
    agreement: float | None
    evaluations: int
    seconds: float
