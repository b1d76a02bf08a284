"""Ceiling: the best that a prior can show, found by an attack that sees the image itself."""

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
    """A protocol whose update is the images themselves."""

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The images, under the name of the only parameter."""
        return Update({"image": images})

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """The update itself."""
        return update

    def __repr__(self) -> str:
        return "Itself()"


@final
class _Canvas(nn.Module):
    """A model with one parameter of the images' shape, so that they can be its update."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.image).flatten(1)


def exposed(images: Float[Tensor, "B C H W"], labels: Tensor) -> Observation:
    """The observation if the client sent its images, for `ceiling` attacks.

    Args:
        images: in [0, 1].
        labels: (B,) class indices for a conditional prior; ignored otherwise.
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
    """The same searches in the same spaces and constraints, by the images' squared error alone.

    Its result on an `exposed` image bounds what the attack can reach with any gradient.
    """
    phases = tuple(
        replace(phase, distance=Squared(), regularizers=(), curvature=0.0, smoothing=0.0)
        for phase in attack.phases
    )
    return replace(
        attack, name=f"{attack.name}-ceiling", phases=phases, selection=Measure(distance=Squared())
    )
