"""Clipping: a bound on the length of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Changed, Defense
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class Clip(Defense):
    """The update, shortened to a norm: `u min(1, norm / |u|)`, as a whole or tensor by tensor.

    Args:
        norm: the bound, above 0, in the units of the update.
        per_layer: clip every tensor separately.

    Source: Abadi et al., Deep Learning with Differential Privacy, CCS 2016, without its noise;
    `torch.nn.utils.clip_grad_norm_` adds 1e-6 to |u|; norm 4 in the GIFD paper.
    """

    norm: float
    per_layer: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.norm < math.inf:
            raise InputError(f"expected a clipping norm above 0 and finite, got {self.norm}")

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Clip the update."""
        return Changed(inner=protocol, change=self._clip, name=repr(self), seed=seed)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The same: clipping is differentiable."""
        return self.wrap(protocol, 0)

    @classmethod
    def guess(cls, upload: Upload) -> Clip | None:
        """Per layer, if most tensors have the same length.

        Otherwise the length of the update, if it is less than a fifth of the shortest update of
        random images.
        """
        lengths = upload.update.squares().sqrt()
        longest = float(lengths.max())
        if len(lengths) > 2 and float((lengths > 0.999 * longest).double().mean()) > 0.5:
            return cls(norm=longest, per_layer=True)
        typical = _typical(upload)
        norm = float(upload.update.norm())
        return cls(norm=norm) if norm < typical / 5 else None

    def _clip(self, update: Update, rng: torch.Generator) -> Update:
        if self.per_layer:
            return update.map(lambda tensor: tensor * self._factor(tensor.square().sum().sqrt()))
        factor = self._factor(update.norm())
        return update.map(lambda tensor: tensor * factor)

    def _factor(self, length: Tensor) -> Tensor:
        return (self.norm / (length + 1e-6)).clamp(max=1.0)


def _typical(upload: Upload, tries: int = 4) -> float:
    """The length of the shortest update of `tries` batches of random images and labels."""
    model, shape = upload.model, upload.image_shape
    rng, task = torch.Generator().manual_seed(0), model.task(shape)
    lengths = []
    for _ in range(tries):
        images = torch.rand(upload.batch_size, *shape, generator=rng)
        labels = task.drawn(len(images), rng, next(iter(model.parameters.values())))
        replayed = upload.replay(images.to(model.device), labels)
        lengths.append(float(replayed.detach().norm()))
    return min(lengths)
