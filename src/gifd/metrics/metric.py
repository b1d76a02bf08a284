"""Metric: one number per pair of reconstruction and true image."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError


class Metric(ABC):
    """A distance or similarity of two images, computed for each pair.

    Metrics are always computed on the CPU, so values do not depend on the images' device.

    Attributes:
        name: The key of its values.
        higher_is_better: Whether larger values mean closer reconstructions.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __call__(
        self, images: Shaped[Tensor, "..."], truth: Shaped[Tensor, "..."]
    ) -> Float[Tensor, "B"]:
        """Compare each image with the true image at the same place in the batch.

        Args:
            images: Reconstructions (B, C, H, W), values in [0, 1].
            truth: True images of the same shape, values in [0, 1].

        Returns:
            One value per pair (B,), float64, on the CPU.

        Raises:
            InputError: A batch is empty, not four-dimensional, not of floats, or outside [0, 1];
                the shapes differ; or the images are too small for the metric.
        """
        check_pair(images, truth)
        with torch.no_grad():
            return self._values(images.detach().cpu().double(), truth.detach().cpu().double())

    @abstractmethod
    def _values(
        self, images: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B"]:
        """The values for validated float64 images on the CPU; returns (B,), float64."""


def check_pair(images: Tensor, truth: Tensor) -> None:
    """Check that metrics can compare two batches.

    Raises:
        InputError: See ``Metric.__call__``.
    """
    for role, batch in (("images", images), ("truth", truth)):
        _check_batch(role, batch)
    if images.shape != truth.shape:
        raise InputError(
            f"expected images and truth of one shape, got {tuple(images.shape)} and "
            f"{tuple(truth.shape)}: pass one reconstruction per true image"
        )


def check_side(batch: Tensor, least: int, name: str) -> None:
    """Check that images are large enough for a metric's window or network.

    Raises:
        InputError: The height or the width is below ``least`` pixels.
    """
    height, width = batch.shape[-2:]
    if min(height, width) < least:
        raise InputError(
            f"{name} needs images of at least {least}x{least} pixels, got {height}x{width}: "
            "use another metric for images this small"
        )


def as_rgb(batch: Tensor, name: str) -> Tensor:
    """Three channels, for a network trained on colour images: grey (B, 1, H, W) is repeated.

    Raises:
        InputError: The images have neither one nor three channels.
    """
    channels = batch.shape[1]
    if channels not in (1, 3):
        raise InputError(f"{name} needs images of 1 or 3 channels, got {channels}")
    return batch.expand(-1, 3, -1, -1)


def _check_batch(role: str, batch: Tensor) -> None:
    if batch.dim() != 4 or batch.numel() == 0:
        raise InputError(
            f"expected {role} of shape (B, C, H, W) with no side empty, got {tuple(batch.shape)}"
        )
    if not batch.dtype.is_floating_point:
        raise InputError(
            f"expected {role} of floats in [0, 1], got {batch.dtype}: divide bytes by 255"
        )
    low, high = (bound.item() for bound in batch.detach().aminmax())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise InputError(
            f"expected {role} with values in [0, 1], got {low:.4g} to {high:.4g}: clamp or rescale"
        )
