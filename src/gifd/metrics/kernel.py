"""Kernel distance: a distance between two sets of images, without pairs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.metrics.stlpips import alexnet_features


def kernel_distance(
    images: Float[Tensor, "B C H W"], others: Float[Tensor, "D C H W"], *, offline: bool = False
) -> float:
    """The distance between two sets of images: 1000 times an unbiased squared MMD.

    The kernel is `(x . y + 1)^3` on AlexNet's five layers (the trunk of ST-LPIPS, fetched once),
    see `alexnet_features`. For two draws from one source it is about 0, and can be negative, at
    any sample size: unlike FID it can be used on few images.

    Args:
        images: at least two, in [0, 1].
        others: likewise; the numbers may differ.
        offline: use cached weights and download nothing.

    Raises:
        InputError: fewer than two images in a set, or images that are too small.
        WeightsError: the weights cannot be loaded.

    Source: Binkowski et al., Demystifying MMD GANs, ICLR 2018 (KID, there on Inception).
    """
    if min(len(images), len(others)) < 2:
        raise InputError(
            f"expected at least two images in each set, got {len(images)} and {len(others)}"
        )
    return 1000 * mmd(*(alexnet_features(x, offline=offline) for x in (images, others)))


def mmd(x: Float[Tensor, "B D"], y: Float[Tensor, "C D"]) -> float:
    """The unbiased `E k(x, x') + E k(y, y') - 2 E k(x, y)`, the first two over distinct pairs."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T + 1).pow(3)

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
