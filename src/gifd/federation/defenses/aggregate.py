"""Secure aggregation: the server sees only the mean of several clients' updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import final

from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Defense, Wrapped
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class Aggregate(Defense):
    """The mean of the updates of `clients` clients; the private batch is the union of theirs.

    Args:
        clients: n, at least 1; each holds 1 / n of the images, in their order.

    Source: Bonawitz et al., Practical Secure Aggregation, CCS 2017. Only its result is modelled:
    the exact sum.
    """

    clients: int

    inside = True

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise InputError(f"expected at least 1 client to aggregate, got {self.clients}")

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Every client runs the protocol on its share."""
        return _Mean(inner=protocol, clients=self.clients)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The same."""
        return self.wrap(protocol, 0)


@dataclass(frozen=True, kw_only=True)
class _Mean(Wrapped):
    clients: int

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The mean of the clients' updates."""
        size = self._share(len(images))
        shares = (slice(first, first + size) for first in range(0, len(images), size))
        updates = (
            self.inner(model, parameters, buffers, images[own], labels[own]) for own in shares
        )
        return reduce(add, updates) / self.clients

    def noise(self, batch: int) -> float:
        """The noise of one client on its share, over `sqrt(n)`: each client draws its own."""
        return self.inner.noise(self._share(batch)) / math.sqrt(self.clients)

    def _share(self, batch: int) -> int:
        if batch % self.clients:
            raise InputError(
                f"expected a batch that {self.clients} clients share alike, got {batch} images"
            )
        return batch // self.clients

    def __repr__(self) -> str:
        return f"mean of {self.clients} x {self.inner!r}"
