"""Soteria: hides the part of the head's gradient that reveals most of the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import vjp, vmap

from gifd.errors import InputError
from gifd.federation.defenses import zeros
from gifd.federation.defenses.defense import Defense, Masked, Wrapped
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class Soteria(Defense):
    """Sets columns of the gradient of the head's weight to zero where the image is most exposed.

    With r the input of the head, it hides the `floor(rate F)` columns with the smallest
    `s_i = sum_b |d r_i / d x_b| / (r_i + 0.1)`. Such an r_i changes only if the image changes a
    lot, so it reveals much of the image. The rest of the update is unchanged.

    Args:
        rate: the share of hidden columns, in [0, 1).

    Source: Sun et al., Soteria: Provable Defense against Privacy Leakage in Federated Learning
    from Representation Perspective, CVPR 2021, as its code approximates `|r_i (d r_i / d x)^-1|`.
    Rate 0.8 in the GIFD paper.

    Differs from the official code: its threshold hides nothing if more columns than requested do
    not depend on the image at all. Here exactly the requested number is hidden.
    """

    rate: float

    looks_again = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise InputError(f"expected a Soteria rate in [0, 1), got {self.rate}")

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Hide columns by the sensitivities of the private images."""
        return _Hiding(inner=protocol, rate=self.rate)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The zero columns of the update reveal what was hidden."""
        head = upload.model.head(upload.image_shape).weight
        weight = upload.update[head]
        shown = (weight != 0).any(0, keepdim=True).to(weight.dtype)  # (1, F)
        return Masked(inner=protocol, masks={head: shown}, name=repr(self))

    @classmethod
    def guess(cls, upload: Upload) -> Soteria | None:
        """The share of zero columns, if there are many and no scattered zeros elsewhere."""
        hidden = zeros.hidden_columns(upload)
        if zeros.scattered(upload) > 0.05 or not 0.05 < hidden < 1:
            return None
        return cls(rate=hidden)


def sensitivities(
    model: Model, images: Float[Tensor, "B C H W"], chunk: int = 32
) -> Float[Tensor, "F"]:
    """`sum_b |d r_i / d x_b| / (r_i + 0.1)` for every feature i that enters the head."""
    fed, pull = vjp(model.representations, images)  # type: ignore[misc]
    features = fed.shape[1]
    found = []
    for first in range(0, features, chunk):
        rows = torch.eye(features, dtype=fed.dtype, device=fed.device)[first : first + chunk]
        cotangents = rows[:, None, :].expand(-1, len(images), -1)  # (chunk, B, F)
        (slopes,) = vmap(pull)(cotangents)  # (chunk, B, C, H, W)
        found.append(slopes.flatten(2).norm(dim=2))
    norms = torch.cat(found).T  # (B, F)
    summed: Tensor = (norms / (fed + 0.1)).sum(0).detach()
    return summed


@dataclass(frozen=True, kw_only=True)
class _Hiding(Wrapped):
    """The client's side: hides columns by the sensitivities at its parameters."""

    rate: float

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The inner update without the columns that reveal most."""
        update = self.inner(model, parameters, buffers, images, labels)
        head = model.head(images.shape[1:]).weight
        order = sensitivities(model.at(parameters), images).abs().argsort(stable=True)
        shown = torch.ones(len(order), dtype=update[head].dtype, device=order.device)
        shown[order[: math.floor(self.rate * len(order))]] = 0
        return Update({n: t * shown if n == head else t for n, t in update.items()})

    def __repr__(self) -> str:
        return f"{self.inner!r} -> Soteria(rate={self.rate})"
