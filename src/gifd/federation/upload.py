"""Upload: what reaches the server, and what client and server agreed on beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.batch_norm import Statistics
from gifd.errors import InputError
from gifd.federation.protocols import Protocol
from gifd.model import Model
from gifd.updates import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Upload:
    """What one step of a client sends to the server, and what both agreed on beforehand.

    The update may come from a real federation. It is moved to the model's device and dtype.

    Args:
        update: the client's update; checked against the model and sorted in its order.
        model: the model that both have, as the defences prepared it (`Defense.prepare`).
        protocol: the agreed protocol, without defences.
        image_shape: (C, H, W) of the private images.
        batch_size: the number of private images.
        labels: their class indices (B,), or what else the loss takes (B, ...); None: not
            disclosed.
        batch_norm: statistics of the inputs of the model's batch norms, in the order of the
            forward pass; None: not disclosed.
        batch_norm_source: the data of these statistics: 'running', the data that the model was
            trained on, or 'batch', the private images.
        defended: whether the client is known to use defences. Which ones an upload does not say.

    Raises:
        UpdateError: the update does not fit the model.
        InputError: the disclosed values are inconsistent.
    """

    update: Update
    model: Model
    protocol: Protocol
    image_shape: tuple[int, int, int]
    batch_size: int
    labels: Shaped[Tensor, "..."] | None = None
    batch_norm: tuple[Statistics, ...] | None = None
    batch_norm_source: Literal["running", "batch"] | None = None
    defended: bool = False

    def __post_init__(self) -> None:
        check_disclosed(
            self.image_shape, self.batch_size, self.labels, self.batch_norm, self.batch_norm_source
        )
        object.__setattr__(self, "update", received(self.update, self.model))

    def replay(self, images: Float[Tensor, "B C H W"], labels: Tensor) -> Update:
        """The update of these images by the agreed protocol, undefended; differentiable."""
        model = self.model
        return self.protocol(model, model.parameters, model.buffers, images, labels)


def received(update: Update, model: Model) -> Update:
    """One client's update, detached, in the model's order, on its device and in its dtype.

    Raises:
        UpdateError: it does not fit the model.
        InputError: it has a restart axis.
    """
    conformed = update.detach().conform(model.parameters)
    if conformed.restarts is not None:
        raise InputError("expected one client's update, got one with a restart axis")
    return conformed


def check_disclosed(
    image_shape: tuple[int, int, int],
    batch_size: int,
    labels: Tensor | None,
    batch_norm: tuple[Statistics, ...] | None,
    batch_norm_source: str | None,
) -> None:
    """Check that sizes, labels and statistics are consistent.

    Raises:
        InputError: statistics without their source, a size below 1, or labels of another number
            of images.
    """
    if (batch_norm is None) != (batch_norm_source is None):
        raise InputError(
            "expected batch-norm statistics together with their source, got "
            f"{'none' if batch_norm is None else 'some'} of {batch_norm_source}"
        )
    if batch_size < 1 or len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(
            "expected a positive batch size and an image shape (C, H, W), got "
            f"{batch_size} and {image_shape}"
        )
    if labels is not None and labels.shape[:1] != (batch_size,):
        raise InputError(f"expected {batch_size} granted labels, got {tuple(labels.shape)}")
