"""How replays are compared with an observation: by what to search, and by what to choose."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.search.distances import Distance
from gifd.updates import Update


@final
class Comparison:
    """Compares replays of an observation with what was observed, both in a gradient's units.

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
        protocol = observation.protocol
        self._protocol = protocol
        observed = protocol.as_gradient(observation.update)
        self._masks: tuple[Update, Update] | None = None
        if protocol.noise(observation.ledger.batch_size) > 0:
            rng = torch.Generator().manual_seed(0)
            held = observed.map(
                lambda t: (torch.rand(t.shape, generator=rng) < self.WITHHELD).to(t)
            )
            self._masks = (held.map(lambda mask: 1 - mask), held)
        self._observed = self._parts(observed)

    def __call__(
        self, distance: Distance, replayed: Update
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The distance to search by, differentiable, and the one to choose by."""
        parts = self._parts(self._protocol.as_gradient(replayed))
        found = [distance(u, v) for u, v in zip(parts, self._observed, strict=True)]
        return found[0], found[-1]

    def _parts(self, gradient: Update) -> list[Update]:
        """What is searched by and, where it is another part, what is chosen by."""
        if self._masks is None:
            return [gradient]
        return [gradient.times(mask) for mask in self._masks]
