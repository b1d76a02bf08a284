"""Ceiling: what a prior can show at best, found by an attack that is handed the image itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks.attack import Attack
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.search import Measure, Squared
from gifd.updates import Update


@final
class Itself(Protocol):
    """A client that sends its images: no gradient, nothing to hide behind."""

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The images under the name of the one parameter."""
        return Update({"image": images})

    def as_gradient(self, update: Update) -> Update:
        """The update itself."""
        return update

    def __repr__(self) -> str:
        return "Itself()"


@final
class _Canvas(nn.Module):
    """A model as large as the images, so that they can be its update."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.image).flatten(1)


def exposed(images: Float[Tensor, "B C H W"], labels: Tensor) -> Observation:
    """What a server would hold if the client sent its images: for `ceiling` attacks.

    Args:
        images: in [0, 1].
        labels: (B,) class indices of a conditional prior; otherwise anything.
    """
    channels, height, width = images.shape[1:]
    canvas = Model(
        module=_Canvas(tuple(images.shape)).to(images.device),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    upload = Upload(
        update=Update({"image": images}),
        model=canvas,
        protocol=Itself(),
        image_shape=(channels, height, width),
        batch_size=len(images),
        labels=labels,
    )
    return observe(upload)


def ceiling(attack: Attack) -> Attack:
    """The same searches in the same spaces and limits, by the images' squared error alone.

    What it reaches on an `exposed` image bounds what the attack can reach by any gradient; the
    rest is the gradient's doing.
    """
    phases = tuple(
        replace(phase, distance=Squared(), regularizers=(), curvature=0.0, smoothing=0.0)
        for phase in attack.phases
    )
    return replace(
        attack, name=f"{attack.name}-ceiling", phases=phases, selection=Measure(distance=Squared())
    )
