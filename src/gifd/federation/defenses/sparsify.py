"""Sparsification: sends only the largest entries of an update."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses import zeros
from gifd.federation.defenses.defense import Changed, Defense, Masked
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class Sparsify(Defense):
    """All but the `1 - rate` largest entries in magnitude are zero; no error is fed back.

    Args:
        rate: the share to drop, in [0, 1).
        per_layer: drop this share of each tensor, not of all of them together.

    Source: Aji and Heafield, Sparse Communication for Distributed Gradient Descent, EMNLP 2017;
    rate 0.9 in the GIFD paper.
    """

    rate: float
    per_layer: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise InputError(f"expected a sparsification rate in [0, 1), got {self.rate}")

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Drop the smallest entries."""
        return Changed(inner=protocol, change=self._drop, name=repr(self), seed=seed)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The zeros of the update reveal what was dropped.

        If a later defence filled the zeros, the replay drops its own smallest entries.
        """
        update = upload.update
        if zeros.share(update) < 0.5 * self.rate:
            return self.wrap(protocol, 0)
        masks = {name: (tensor != 0).to(tensor.dtype) for name, tensor in update.items()}
        return Masked(inner=protocol, masks=masks, name=repr(self))

    @classmethod
    def guess(cls, upload: Upload) -> Sparsify | None:
        """The share of scattered zeros; per layer if it is the same in most tensors.

        Biases are too small to count. The head's weight is left out, as Soteria hides its columns.
        """
        if zeros.scattered(upload) < 0.05:
            return None
        seen = upload.update
        head = zeros.head_weight(upload)
        shares = [
            (zeros.share(Update({name: tensor})), tensor.numel())
            for name, tensor in seen.items()
            if tensor.numel() >= 100 and tensor.ndim > 1 and name != head
        ]
        middle = statistics.median(share for share, _ in shares)
        alike = [abs(share - middle) < 0.002 + 1 / size for share, size in shares]
        if sum(alike) > 0.7 * len(shares) > 1:
            return cls(rate=middle, per_layer=True)
        return cls(rate=zeros.share(seen))

    def _drop(self, update: Update, rng: torch.Generator) -> Update:
        if self.per_layer:
            return update.map(lambda tensor: _largest(tensor, _threshold([tensor], self.rate)))
        threshold = _threshold(update.tensors, self.rate)
        return update.map(lambda tensor: _largest(tensor, threshold))


def _threshold(tensors: list[Tensor], rate: float) -> Tensor:
    """The smallest magnitude to keep: all but `floor(rate n)` entries are kept."""
    sizes = torch.cat([tensor.detach().abs().flatten() for tensor in tensors])
    return sizes.kthvalue(math.floor(rate * sizes.numel()) + 1).values


def _largest(tensor: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(tensor.abs() >= threshold, tensor, 0)
