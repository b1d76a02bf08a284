"""What the head was fed, read off its gradient: each private image's last representation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gifd.errors import ModelError
from gifd.model import Model
from gifd.observation import Observation


def observed_representations(
    observation: Observation, labels: Int[Tensor, "B"]
) -> Float[Tensor, "B F"]:
    """The direction of what entered the head for each private image.

    Under cross-entropy the gradient of the head's weight is
    `1/B sum_i (p_i - onehot(y_i)) a_i^T`. For one image its row y is `-(1 - p_y) a`: the
    direction of a, exactly. For more, row y_i is that of the images labelled y_i, disturbed
    by the small probabilities that the others give to y_i; images with one label share it.

    Args:
        observation: what the server has.
        labels: of the private images.

    Source: Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1 (the input of a linear
    layer is its weight's gradient over its bias's; only its direction is used here).

    Raises:
        ModelError: no linear head, or one whose gradient vanishes for a label.
    """
    head = observation.model.head(observation.ledger.image_shape)
    rows = -observation.protocol.as_gradient(observation.update)[head.weight][labels]
    if not bool((rows != 0).any(1).all()):
        raise ModelError(
            "expected a head whose gradient shows what it was fed, got zeros only: switch "
            "the extension 'regression' off"
        )
    return F.normalize(rows, dim=1)


def trusted(observation: Observation, labels: Int[Tensor, "B"]) -> Float[Tensor, "B F"] | None:
    """How far each number of `observed_representations` is to be trusted; None: all alike.

    Less than fully where the attacker believes in a defence that hides parts of the head's
    gradient (`Protocol.trust`).
    """
    head = observation.model.head(observation.ledger.image_shape)
    trust = observation.protocol.trust(head.weight)
    if trust is None or trust.ndim == 0:
        return None
    return trust.expand(observation.update[head.weight].shape)[labels]


def representations(model: Model, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
    """The direction of what enters the head for each of these images: one forward pass.

    Raises:
        ModelError: no linear head, or one that is fed more than a vector an image.
    """
    with torch.no_grad():
        return F.normalize(model.representations(images), dim=1)
