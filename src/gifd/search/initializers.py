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
from gifd.search.spaces import Draw, SearchContext, Space
from gifd.search.standing import Standing, apart, flat


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """What an initialiser has to work with.

    Args:
        context: of the run.
        space: of the phase that begins.
        before: how the last phase ended, in its own space; of the first phase random draws.
        observations, draws: one an image.
        values: the distances (N, R) of states (N, R, ...) of the new space, without gradients.
    """

    context: SearchContext
    space: Space
    before: Standing
    observations: Sequence[Observation]
    draws: Sequence[Draw]
    values: Callable[[State], Float[Tensor, "N R"]]

    def entered(self, standing: Standing) -> Standing:
        """The same searches in the new space."""
        state = self.space.enter(self.context, standing.space, flat(standing.state))
        return replace(standing, space=self.space, state=apart(state, len(standing.alive)))

    def drawn(self) -> State:
        """Fresh random states of the new space, (N, R, ...)."""
        each = [self.space.start(self.context, draw) for draw in self.draws]
        return {name: torch.stack([state[name] for state in each]) for name in each[0]}


class Initializer(ABC):
    """A rule for where a phase begins.

    Every subclass has `evaluations`, what it costs each search in victim gradients.
    """

    evaluations: int

    @abstractmethod
    def __call__(self, beginning: Beginning) -> Standing:
        """The searches in the new space, at where they begin."""

    def at_cost(self, evaluations: int) -> Initializer:
        """The same rule at another cost, as near as it can."""
        return self

    def searches(self, before: int) -> int:
        """How many of so many searches an image go on."""
        return before


@final
@dataclass(frozen=True)
class Carried(Initializer):
    """Where the last phase ended; of the first phase at random draws."""

    evaluations = 0

    def __call__(self, beginning: Beginning) -> Standing:
        """What the last phase kept."""
        return beginning.entered(beginning.before)


@final
@dataclass(frozen=True)
class Consensus(Initializer):
    """One search an image, from the mean of all that go on (`gifd.search.consensus`)."""

    evaluations = 0

    def __call__(self, beginning: Beginning) -> Standing:
        """The best search of each image, its state in place of its own the mean."""
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
    """The nearest of several random draws, each search for itself.

    It needs no gradients, and where they mislead far from the truth it finds a better start.

    Args:
        evaluations: draws beside the first, each compared by one evaluation.
    """

    evaluations: int = 100

    def __post_init__(self) -> None:
        if self.evaluations < 0:
            raise InputError(f"expected at least 0 further draws, got {self.evaluations}")

    def at_cost(self, evaluations: int) -> Initializer:
        """So many draws."""
        return RankedDraws(evaluations=evaluations)

    def __call__(self, beginning: Beginning) -> Standing:
        """The draw whose distance is least; the first is where the search stands."""
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
