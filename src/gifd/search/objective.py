"""Objective: what one search is moved by, and what its iterates are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.priors.generator import State
from gifd.search.curvature import smoothed_curvature
from gifd.search.distances import Distance
from gifd.search.regularizers import Candidate, Regularizer
from gifd.search.smoothing import smoothed_replay
from gifd.search.spaces import SearchContext, Space
from gifd.updates import Update


class Part(NamedTuple):
    """One part of the observed gradient: its tensors, and their squared norms, computed once."""

    tensors: dict[str, Tensor]
    squares: Tensor


class Target(NamedTuple):
    """What of one observation an objective compares with: tensors only, so that they can be
    stacked over images.

    Args:
        parts: what is searched by and, where that is another part, what is chosen by.
        statistics: mean and variance of every batch norm's input, where they were granted.
    """

    parts: tuple[Part, ...]
    statistics: tuple[tuple[Tensor, Tensor], ...]


@final
class Comparison:
    """How replays of an observation are compared with it, both in a gradient's units.

    A search that is free enough fits noise as well as it fits the image. So where the attacker
    believes that noise lies on the gradient, a share of all numbers, drawn at random, is
    withheld from the search; iterates, restarts and phases are chosen by their distance on these,
    whose noise nothing was fitted to. Without noise all numbers serve both.

    Args:
        observation: what the server has, and what it believes.

    Source: ours; to choose by what was not fitted is cross-validation (Stone, Cross-Validatory
    Choice and Assessment of Statistical Predictions, 1974).
    """

    WITHHELD: ClassVar[float] = 0.2

    def __init__(self, observation: Observation) -> None:
        protocol, granted = observation.protocol, observation.ledger.batch_norm
        self._protocol = protocol
        observed = protocol.as_gradient(observation.update)
        self._masks: tuple[Update, Update] | None = None
        if protocol.noise(observation.ledger.batch_size) > 0:
            rng = torch.Generator().manual_seed(0)
            held = observed.map(
                lambda t: (torch.rand(t.shape, generator=rng) < self.WITHHELD).to(t)
            )
            self._masks = (held.map(lambda mask: 1 - mask), held)
        self.target = Target(
            parts=tuple(Part(dict(each), each.squares()) for each in self._parts(observed)),
            statistics=tuple((each.mean, each.variance) for each in granted or ()),
        )

    def __call__(
        self, distance: Distance, replayed: Update, target: Target | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The distance to search by, differentiable, and the one to choose by.

        Args:
            distance: between a part of the replay and the same part of what was observed.
            replayed: the update of a candidate.
            target: of another observation by the same protocol, in place of this one's.
        """
        parts = self._parts(self._protocol.as_gradient(replayed))
        found = [
            distance(ours, Update(theirs.tensors, squares=theirs.squares))
            for ours, theirs in zip(parts, (target or self.target).parts, strict=True)
        ]
        return found[0], found[-1]

    def _parts(self, gradient: Update) -> list[Update]:
        """What is searched by and, where it is another part, what is chosen by."""
        if self._masks is None:
            return [gradient]
        return [gradient.times(mask) for mask in self._masks]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """The objective of one search, a pure function of tensors:

        distance(replay(images), observed) + sum of regularisers.

    Args:
        context, space: how a state shows images.
        observation: by whose protocol they are replayed.
        comparison: of these replays.
        distance: what makes a replayed update match.
        regularizers: penalties on the images.
        curvature, smoothing: see `Phase`.
    """

    context: SearchContext
    space: Space
    observation: Observation
    comparison: Comparison
    distance: Distance
    regularizers: Sequence[Regularizer] = ()
    curvature: float = 0.0
    smoothing: float = 0.0

    def __call__(
        self, state: State, known: Tensor, target: Target, group: Tensor | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What to descend, and the distance to choose by.

        Args:
            state: (B, ...) of one search: what is searched and what is carried.
            known: (B,) its labels.
            target: what it is compared with.
            group: (B, C, H, W) normalised: the mean of the restarts' images, where one is used.
        """
        images = self.space.images(self.context, state)
        labels = self.space.labels(state, known)
        with smoothed_curvature(self.curvature), smoothed_replay(self.smoothing):
            replayed = self.observation.replay(images, labels)
        objective, distance = self.comparison(self.distance, replayed, target)
        if self.regularizers:
            candidate = Candidate(
                inputs=self.context.model.normalize(images),
                state=state,
                model=self.context.model,
                statistics=target.statistics,
                group=group,
            )
            for regularizer in self.regularizers:
                objective = objective + regularizer(candidate)
        return objective, distance
