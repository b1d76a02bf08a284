"""Representations: the inputs of the head for the private images, from its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import ModelError
from gifd.model import Model


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What the attacker sees of the private images' representations.

    Args:
        directions: (B, F), each of length 1, or 0 if nothing is shown.
        shown: (B, F) 1 where a number is shown, 0 where a defence hides it; None: all are shown.
        noise: (B,) the standard deviation of the noise on each number, relative to the length of
            the clean vector; None: no noise.
    """

    directions: Float[Tensor, "B F"]
    shown: Float[Tensor, "B F"] | None = None
    noise: Float[Tensor, "B"] | None = None

    @property
    def plain(self) -> bool:
        """Whether there are no hidden numbers and no noise."""
        return self.shown is None and self.noise is None

    def as_seen(
        self, image: int, own: Float[Tensor, "N F"], rng: torch.Generator
    ) -> Float[Tensor, "N F"]:
        """The attacker's own directions with the noise and hidden numbers of this image."""
        if self.noise is not None:
            drawn = torch.randn(own.shape, generator=rng).to(own)
            own = own + float(self.noise[image]) * drawn
        if self.shown is not None:
            own = own * self.shown[image]
        return F.normalize(own, dim=1)


def observed_representations(observation: Observation, labels: Int[Tensor, "B"]) -> Observed:
    """The direction of each private image's representation.

    Under cross-entropy the gradient of the head's weight is
    `1/B sum_i (p_i - onehot(y_i)) a_i^T`. For one image its row y is `-(1 - p_y) a`, which gives
    the exact direction of a. For several, row y_i gives the images with label y_i, disturbed by
    the small probabilities that the others give to y_i; images with the same label share it.
    The result includes the hidden numbers and the noise that the attacker believes in.

    Args:
        observation: what the attacker has.
        labels: of the private images.

    Source: Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1 (the input of a linear
    layer is its weight's gradient over its bias's; only its direction is used here).

    Raises:
        ModelError: no linear head, or one whose gradient vanishes for a label.
    """
    head = observation.model.head(observation.ledger.image_shape).weight
    protocol = observation.protocol
    gradient = observation.gradient[head]
    std, shown = protocol.noise(observation.ledger.batch_size), protocol.shown(head)
    rows = -gradient[labels]
    if not bool((rows != 0).any(1).all()):
        raise ModelError(
            "expected a head whose gradient shows what it was fed, got zeros only: switch "
            "the extension 'regression' off"
        )
    noise = None
    if std > 0:
        numbers = rows.shape[1]
        uncertain = std**2 * (2 * numbers) ** 0.5  # one standard deviation of the noise's square
        clean = (rows.square().sum(1) - std**2 * numbers).clamp_min(uncertain)
        noise = std / clean.sqrt()
    if shown is not None:
        shown = shown.expand(gradient.shape)[labels]
        rows = rows * shown
    return Observed(directions=F.normalize(rows, dim=1), shown=shown, noise=noise)


def representations(model: Model, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
    """The direction of each image's representation: one forward pass.

    Raises:
        ModelError: no linear head, or one whose input is more than one vector for each image.
    """
    with torch.no_grad():
        return F.normalize(model.representations(images), dim=1)
