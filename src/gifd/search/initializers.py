"""Initialisers: where a phase begins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.priors.generator import State
from gifd.search.choice import chosen
from gifd.search.consensus import consensus
from gifd.search.spaces import Draw, SearchContext, Space, drawn
from gifd.search.standing import Standing, apart, flat

Tell = Callable[[str, float], None]


def untold(doing: str, share: float) -> None:
    """Nobody listens."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """The inputs of an initialiser.

    Args:
        context: of the run.
        space: of the phase that begins.
        before: the end of the last phase, in its own space; random draws for the first phase.
        observations, draws: one per image.
        values: states (N, R, ...) of the new space -> distances (N, R), without gradients.
        tell: reports what is done at the moment, and the share of the beginning behind it.
    """

    context: SearchContext
    space: Space
    before: Standing
    observations: Sequence[Observation]
    draws: Sequence[Draw]
    values: Callable[[State], Float[Tensor, "N R"]]
    tell: Tell = untold

    def entered(self, standing: Standing) -> Standing:
        """The same searches in the new space."""
        state = self.space.enter(self.context, standing.space, flat(standing.state))
        return replace(standing, space=self.space, state=apart(state, len(standing.alive)))

    def drawn(self) -> State:
        """Fresh random states of the new space, (N, R, ...)."""
        return drawn(self.space, self.context, self.draws)


class Initializer(ABC):
    """Chooses where a phase begins.

    Every subclass has `evaluations`, its cost per search in victim gradients.
    """

    evaluations: int

    @abstractmethod
    def __call__(self, beginning: Beginning) -> Standing:
        """The searches in the new space, where they begin."""

    def at_cost(self, evaluations: int) -> Initializer:
        """The same initialiser at this cost, or as near as possible."""
        return self

    def searches(self, before: int) -> int:
        """How many of an image's searches continue."""
        return before


@final
@dataclass(frozen=True)
class Carried(Initializer):
    """Begin where the last phase ended; the first phase at random draws."""

    evaluations = 0

    def __call__(self, beginning: Beginning) -> Standing:
        """The iterates that the last phase kept."""
        return beginning.entered(beginning.before)


@final
@dataclass(frozen=True)
class Consensus(Initializer):
    """Begin one search per image, at the mean of its active restarts (`gifd.search.consensus`)."""

    evaluations = 0

    def __call__(self, beginning: Beginning) -> Standing:
        """The best search of each image, its state replaced by the mean."""
        before, context = beginning.before, beginning.context
        best_first = before.best_first()
        ranked, means = before.chosen(best_first), []
        with torch.no_grad():
            for n, alive in enumerate(ranked.alive):
                going = [r for r in range(len(alive)) if bool(alive[r])] or [0]
                own = {name: tensor[n, going] for name, tensor in ranked.state.items()}
                rows = [
                    {name: tensor[i] for name, tensor in own.items()} for i in range(len(going))
                ]
                shown = ranked.space.pictures(context, own)
                means.append(consensus(rows, shown, ranked.labels[n, going]))
        state = {name: torch.stack([mean[name] for mean in means])[:, None] for name in means[0]}
        return beginning.entered(replace(before.chosen(best_first[:, :1]), state=state))

    def searches(self, before: int) -> int:
        """One."""
        return 1


@final
@dataclass(frozen=True, kw_only=True)
class RankedDraws(Initializer):
    """Begin at the best of several random draws, separately for each search.

    It needs no gradients, which are often misleading far from the solution.

    Args:
        evaluations: draws after the first; each costs one evaluation.
    """

    evaluations: int = 100

    def __post_init__(self) -> None:
        if self.evaluations < 0:
            raise InputError(f"expected at least 0 further draws, got {self.evaluations}")

    def at_cost(self, evaluations: int) -> Initializer:
        """With this many further draws."""
        return RankedDraws(evaluations=evaluations)

    def __call__(self, beginning: Beginning) -> Standing:
        """The draw of least distance; the first one is the search's present state."""
        best = beginning.entered(beginning.before)
        least = beginning.values(best.state) if self.evaluations else best.distance
        for _ in range(self.evaluations):
            fresh = beginning.drawn()
            distance = beginning.values(fresh)
            nearer = (distance < least) | (least.isnan() & ~distance.isnan())
            state = {
                name: chosen(nearer, fresh[name], tensor) for name, tensor in best.state.items()
            }
            best, least = replace(best, state=state), chosen(nearer, distance, least)
        return best
