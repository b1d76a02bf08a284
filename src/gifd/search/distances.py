"""Matching distances between a replayed update and the observed one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.updates import Update

_TINY = 1e-24
"""Added to squared norms, so that the gradient of a norm exists at zero. Added to each factor: a
product of two would underflow in float32."""


class Distance(ABC):
    """The distance between a replayed update and the observed one; 0 if they are equal."""

    @abstractmethod
    def __call__(self, replayed: Update, observed: Update) -> Float[Tensor, ""]:
        """The distance as a differentiable scalar."""


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(Distance):
    """`1 - <u, v> / (|u| |v|) + norm * log(|u| / |v|)^2` over all parameters concatenated.

    With `norm = 0` it is the papers' scale-invariant distance. The length of an update carries
    contrast and brightness; the second term (ours) compares it.

    Args:
        norm: weight of the second term.

    Source: Geiping et al., Inverting Gradients, NeurIPS 2020, Eq. 4.
    """

    norm: float = 0.0

    def __call__(self, replayed: Update, observed: Update) -> Float[Tensor, ""]:
        """At least 0; at most 2 where `norm` is 0."""
        dots, squares = replayed.products(observed)
        u, v = squares.sum() + _TINY, observed.squares().sum() + _TINY
        distance = 1 - dots.sum() / (u.sqrt() * v.sqrt())
        if self.norm > 0:
            distance = distance + self.norm * (0.5 * (u.log() - v.log())).square()
        return distance


@final
@dataclass(frozen=True, kw_only=True)
class Squared(Distance):
    """`|u - v|^2` over all parameters.

    Args:
        mean: divide by the number of parameter tensors, as in the code of GGL and GIFD.

    Source: Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, Eq. 4.
    """

    mean: bool = False

    def __call__(self, replayed: Update, observed: Update) -> Float[Tensor, ""]:
        """At least 0, in squared units of the gradient."""
        squares = (replayed - observed).squares()
        return squares.mean() if self.mean else squares.sum()


@final
@dataclass(frozen=True, kw_only=True)
class LayerCosine(Distance):
    """The mean over parameters l of `1 - cos(u_l, v_l)`, with equal weight for each parameter.

    The global cosine is dominated by the last layers, whose gradients are longest; this one
    weighs the first layers more, which carry the layout of the image. The cosine is
    scale-invariant; with `norm` above 0, `norm * mean_l log(|u_l| / |v_l|)^2` is added, which
    compares the lengths and so brightness and contrast.

    Args:
        norm: weight of the second term.
    """

    norm: float = 0.0

    def __call__(self, replayed: Update, observed: Update) -> Float[Tensor, ""]:
        """At least 0."""
        dots, squares = replayed.products(observed)  # (N,) each
        u, v = squares + _TINY, observed.squares() + _TINY
        distance = (1 - dots / (u.sqrt() * v.sqrt())).mean()
        if self.norm > 0:
            distance = distance + self.norm * (0.5 * (u.log() - v.log())).square().mean()
        return distance


@final
@dataclass(frozen=True, kw_only=True)
class PartialMatching(Distance):
    """`sum_l mean |m_l u_l - m_l v_l| + 1 - cos(m_l u_l, m_l v_l)`, m_l a mask.

    The mask selects the elements of parameter l whose *replayed* gradient is largest in
    magnitude. It is recomputed at every evaluation.

    Args:
        share: of the elements, in (0, 1].

    Source: Fan et al., Boosting Gradient Leakage Attacks: Data Reconstruction in Realistic FL
    Settings (FedLeak), USENIX Security 2025, arXiv:2506.08435, as in its published code.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"expected a share in (0, 1], got {self.share}")

    def __call__(self, replayed: Update, observed: Update) -> Float[Tensor, ""]:
        """At least 0; 0 if the updates are equal."""
        kept = replayed.detach().map(self._mask)
        u, v = replayed.times(kept), observed.times(kept)
        away = [tensor.abs().mean() for tensor in (u - v).tensors]
        dots, squares = u.products(v)
        lengths = (squares + _TINY).sqrt() * (v.squares() + _TINY).sqrt()
        return torch.stack(away).sum() + (1 - dots / lengths).sum()

    def _mask(self, tensor: Tensor) -> Tensor:
        """1 for the largest elements, else 0."""
        size = tensor.abs().flatten()
        smallest = size.kthvalue(max(1, math.ceil((1 - self.share) * size.numel()))).values
        return (tensor.abs() >= smallest).to(tensor.dtype)
