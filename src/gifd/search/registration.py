"""Registration: images shifted by whole pixels onto a reference."""

from __future__ import annotations

import torch
from jaxtyping import Float
from skimage.registration import phase_cross_correlation
from torch import Tensor


def aligned(
    images: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"], reach: float = 1 / 8
) -> Float[Tensor, "B C H W"]:
    """Each image shifted for the best correlation with its reference; edges wrap around.

    Args:
        images: the images to shift.
        reference: one for each image.
        reach: the largest shift, as a share of a side; an image that needs more stays in place.

    Source: Guizar-Sicairos et al., Efficient Subpixel Image Registration Algorithms, Optics
    Letters 2008; scikit-image's `phase_cross_correlation` finds the shift.
    """
    moved = []
    for image, onto in zip(images, reference, strict=True):
        grey = [tensor.mean(0).cpu().numpy() for tensor in (onto, image)]
        shift = phase_cross_correlation(*grey, normalization=None)[0]  # type: ignore[no-untyped-call]
        down, right = (int(s) for s in shift)
        height, width = image.shape[-2:]
        if abs(down) > reach * height or abs(right) > reach * width:
            down = right = 0
        moved.append(torch.roll(image, (down, right), (-2, -1)))
    return torch.stack(moved)
