"""Observation: all that an attacker has. Ledger: what it was granted beyond the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.batch_norm import Statistics
from gifd.federation.protocols import Protocol
from gifd.federation.upload import check_disclosed, received
from gifd.model import Model
from gifd.updates import Update


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What the attacker is granted beyond the update itself. None means: not granted.

    Args:
        image_shape: (C, H, W) of the private images.
        batch_size: how many private images the update was computed on.
        labels: their class indices (B,), or what else the loss takes (B, ...).
        batch_norm: statistics of the inputs of the model's batch norms, in the order of the
            forward pass.
        batch_norm_source: the data of these statistics: 'running', the data that the model was
            trained on, or 'batch', the private images.
        defenses: the client's defences with their strengths.
        attacker: 'static' ignores the defences, 'adaptive' knows them, 'estimated' guesses them
            from the update; None if there are none and none were guessed.
        believed: the defences that the attacker replays.

    Raises:
        InputError: sizes, labels or statistics that do not fit together.
    """

    image_shape: tuple[int, int, int]
    batch_size: int
    labels: Shaped[Tensor, "..."] | None = None
    batch_norm: tuple[Statistics, ...] | None = None
    batch_norm_source: Literal["running", "batch"] | None = None
    defenses: tuple[str, ...] | None = None
    attacker: str | None = None
    believed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_disclosed(
            self.image_shape, self.batch_size, self.labels, self.batch_norm, self.batch_norm_source
        )

    def to(self, like: Tensor) -> Ledger:
        """With the labels on a tensor's device, and the statistics also in its dtype."""
        labels, given = self.labels, self.batch_norm
        if labels is not None:
            numbers = labels.is_floating_point()
            labels = labels.to(like.device, like.dtype if numbers else torch.long)
        return replace(
            self,
            labels=labels,
            batch_norm=None if given is None else tuple(each.to(like) for each in given),
        )

    def entries(self) -> dict[str, object]:
        """Each grant by name, as plain values for the record."""
        return {
            "image_shape": list(self.image_shape),
            "batch_size": self.batch_size,
            "labels": None if self.labels is None else _shown(self.labels),
            "batch_norm": self.batch_norm_source,
            "defenses": None if self.defenses is None else list(self.defenses),
            "attacker": self.attacker,
            "believed": list(self.believed),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """What an attacker has: the update, the model, the protocol it believes in, and the ledger.

    `observe` makes one from an upload. All tensors are moved to the model's device; the update and
    the statistics are also converted to its dtype.

    Args:
        update: the client's update; checked against the model and sorted in its order.
        model: the model that the client received.
        protocol: what the attacker believes the client computed.
        ledger: what the attacker is granted beyond that.

    Raises:
        UpdateError: the update does not fit the model.
    """

    update: Update
    model: Model
    protocol: Protocol
    ledger: Ledger = field(repr=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "update", received(self.update, self.model))
        like = next(iter(self.model.parameters.values()))
        object.__setattr__(self, "ledger", self.ledger.to(like))

    def grants(self) -> Mapping[str, object]:
        """All that the attacker is granted, by name: the protocol and the ledger's entries."""
        return {"protocol": repr(self.protocol), **self.ledger.entries()}

    @property
    def gradient(self) -> Update:
        """The update with the sign and scale of a gradient."""
        return self.as_gradient(self.update)

    def hides(self, name: str) -> bool:
        """Whether all numbers of a parameter's update are hidden, as far as the attacker knows."""
        shown = self.protocol.shown(name)
        return shown is not None and not bool(shown.any())

    def as_gradient(self, update: Update) -> Update:
        """An update of this model, by the protocol the attacker believes in, likewise."""
        return self.protocol.as_gradient(update, self.model.parameters)

    def replay(self, images: Float[Tensor, "B C H W"], labels: Tensor) -> Update:
        """The update of these images by the protocol the attacker believes in; differentiable."""
        model = self.model
        return self.protocol(model, model.parameters, model.buffers, images, labels)


def _shown(labels: Tensor) -> object:
    """As plain values, or the shape of more than fit a record."""
    return labels.tolist() if labels.numel() <= _MOST else f"granted, {tuple(labels.shape)}"


_MOST = 1024
