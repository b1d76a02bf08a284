"""Objective: the function that a search minimises, and the distance that selects its iterates."""

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
    """A part of the observed gradient: its tensors and their precomputed squared norms."""

    tensors: dict[str, Tensor]
    squares: Tensor


class Target(NamedTuple):
    """The tensors of one observation that an objective needs; they can be stacked over images.

    Args:
        parts: the part for the search, then the part for selection if it is another one.
        statistics: mean and variance of every batch norm's input, if granted.
    """

    parts: tuple[Part, ...]
    statistics: tuple[tuple[Tensor, Tensor], ...]


@final
class Comparison:
    """Compares replays with an observation, both in a gradient's units.

    A flexible search fits the noise as well as the image. If the attacker believes that there is
    noise on the gradient, a random share of its numbers is withheld from the search, and
    iterates, restarts and phases are selected by the distance on these. Without noise all
    numbers serve both purposes.

    Args:
        observation: the observed update and the attacker's beliefs.

    Source: ours; selection on held-out data is cross-validation (Stone, Cross-Validatory Choice
    and Assessment of Statistical Predictions, 1974).
    """

    WITHHELD: ClassVar[float] = 0.2

    def __init__(self, observation: Observation) -> None:
        protocol, granted = observation.protocol, observation.ledger.batch_norm
        self._as_gradient = observation.as_gradient
        observed = observation.gradient
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
        """The distance to minimise, differentiable, and the distance for selection.

        Args:
            distance: between corresponding parts of replay and observation.
            replayed: the update of a candidate.
            target: that of another observation with the same protocol, instead of this one's.
        """
        parts = self._parts(self._as_gradient(replayed))
        found = [
            distance(ours, Update(theirs.tensors, squares=theirs.squares))
            for ours, theirs in zip(parts, (target or self.target).parts, strict=True)
        ]
        return found[0], found[-1]

    def _parts(self, gradient: Update) -> list[Update]:
        """The part for the search and, if it is another one, the part for selection."""
        if self._masks is None:
            return [gradient]
        return [gradient.times(mask) for mask in self._masks]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """The objective of one search, a pure function of tensors:

        distance(replay(images), observed) + sum of regularisers.

    Args:
        context, space: map a state to images.
        observation: provides the protocol of the replay.
        comparison: compares the replay with the observation.
        distance: matching distance between updates.
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
        """The objective, and the distance for selection.

        Args:
            state: (B, ...) of one search: variables and carried tensors.
            known: (B,) its labels.
            target: the observed tensors.
            group: (B, C, H, W) normalised: the mean of the restarts' images, if used.
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
