"""Losses and regularisers of the two networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def generator_loss(fake: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """`mean softplus(-D(G(z)))`, the non-saturating loss.

    Source: Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014.
    """
    return F.softplus(-fake).mean()


def discriminator_loss(real: Float[Tensor, "B"], fake: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """`mean softplus(-D(x)) + mean softplus(D(G(z)))`."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1(real: Float[Tensor, "B"], images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """`1/2 mean |d D(x) / d x|^2` over real images; `real` is D of `images`.

    Source: Mescheder et al., Which Training Methods for GANs do actually Converge?, ICML 2018.
    """
    (slope,) = torch.autograd.grad(real.sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


def path_length(
    images: Float[Tensor, "B C H W"], w: Float[Tensor, "B L D"], rng: torch.Generator
) -> Float[Tensor, "B"]:
    """`|J_w^T y|` of each image for a normal y: the sensitivity of an image to its style.

    Its squared distance from a running mean is the regulariser.

    Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020, Eq. 4.
    """
    noise = torch.randn(images.shape, generator=rng, device=images.device)
    noise = noise / math.sqrt(images.shape[2] * images.shape[3])
    (slope,) = torch.autograd.grad((images * noise).sum(), w, create_graph=True)
    return slope.square().sum(2).mean(1).sqrt()
