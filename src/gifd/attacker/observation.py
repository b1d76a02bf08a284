"""The threat model as types: Observation is all a server has, Secret is the private batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from gifd.batch_norm import Statistics
from gifd.errors import InputError
from gifd.federation.protocols import Protocol
from gifd.model import Model
from gifd.updates import Update

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What the setting grants the attacker beyond the bare update. None is: not granted.

    Args:
        image_shape: (C, H, W) of the private images.
        batch_size: how many private images the update was computed on.
        labels: their class indices (B,).
        batch_norm: what entered each of the model's batch norms, in the forward pass's order.
        batch_norm_source: of which data: 'running', what the model was trained on, or 'batch',
            the private images themselves.
        defenses: what the client did to hide its batch, and how strongly.
        attacker: 'naive' ignores defences, 'told' was granted them, 'estimated' guesses them from
            the update; None where the client has none.
        believed: the defences that the attacker replays: as told, or as guessed.
    """

    image_shape: tuple[int, int, int]
    batch_size: int
    labels: Integer[Tensor, "..."] | None = None
    batch_norm: tuple[Statistics, ...] | None = None
    batch_norm_source: Literal["running", "batch"] | None = None
    defenses: tuple[str, ...] | None = None
    attacker: str | None = None
    believed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.batch_norm is None) != (self.batch_norm_source is None):
            raise InputError(
                "expected batch-norm statistics together with their source, got "
                f"{'none' if self.batch_norm is None else 'some'} of {self.batch_norm_source}"
            )
        if self.batch_size < 1 or len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InputError(
                "expected a positive batch size and an image shape (C, H, W), got "
                f"{self.batch_size} and {self.image_shape}"
            )
        if self.labels is not None and self.labels.shape != (self.batch_size,):
            raise InputError(
                f"expected {self.batch_size} granted labels, got {tuple(self.labels.shape)}"
            )
        if self.labels is not None and self.labels.dtype not in _WHOLE:
            raise InputError(
                f"expected granted labels as whole numbers, got {self.labels.dtype}: convert them "
                "with .long()"
            )

    def to(self, like: Tensor) -> Ledger:
        """With its labels on the device of a tensor, its statistics also in that one's dtype."""
        labels, given = self.labels, self.batch_norm
        return replace(
            self,
            labels=None if labels is None else labels.to(like.device, torch.long),
            batch_norm=None if given is None else tuple(each.to(like) for each in given),
        )

    def entries(self) -> dict[str, object]:
        """Each grant by name, in plain values for the record."""
        return {
            "image_shape": list(self.image_shape),
            "batch_size": self.batch_size,
            "labels": None if self.labels is None else self.labels.tolist(),
            "batch_norm": self.batch_norm_source,
            "defenses": None if self.defenses is None else list(self.defenses),
            "attacker": self.attacker,
            "believed": list(self.believed),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """What the server holds: the model it sent out, the update that came back, the ledger.

    What came from elsewhere is taken as it comes: everything is brought to the model's device and
    the update and the statistics to its dtype, here and nowhere else.

    Args:
        update: the client's update; checked against the model and put in its order.
        model: the model as the client received it.
        protocol: what the attacker believes the client computed.
        ledger: what the setting grants beyond that.

    Raises:
        UpdateError: the update does not belong to the model.
    """

    update: Update
    model: Model
    protocol: Protocol
    ledger: Ledger = field(repr=True)

    def __post_init__(self) -> None:
        update = self.update.detach().conform(self.model.parameters)
        if update.restarts is not None:
            raise InputError("expected one client's update, got one with a restart axis")
        object.__setattr__(self, "update", update)
        like = next(iter(self.model.parameters.values()))
        object.__setattr__(self, "ledger", self.ledger.to(like))

    def grants(self) -> Mapping[str, object]:
        """All that this attacker is granted, by name: the protocol and the ledger's entries."""
        return {"protocol": repr(self.protocol), **self.ledger.entries()}

    def replay(self, images: Float[Tensor, "B C H W"], labels: Tensor) -> Update:
        """The update a client would have sent, had it held these images; differentiable."""
        model = self.model
        return self.protocol(model, model.parameters, model.buffers, images, labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Secret:
    """The private batch. No attack takes one: only clients make it and metrics read it.

    Args:
        images: (B, C, H, W) in [0, 1].
        labels: class indices (B,).
    """

    images: Float[Tensor, "..."]
    labels: Int[Tensor, "..."]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.numel() == 0 or labels.shape != images.shape[:1]:
            raise InputError(
                "expected images (B, C, H, W) and one label each, got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if not bool(torch.isfinite(images).all()) or images.min() < 0 or images.max() > 1:
            raise InputError("expected images with values in [0, 1], got values outside")
