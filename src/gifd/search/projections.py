"""Projections onto the constraint set of a search, for each sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError


class Projection(ABC):
    """Maps to the nearest point of a set around where a phase began; idempotent."""

    @abstractmethod
    def __call__(
        self, value: Float[Tensor, "R B *S"], entry: Float[Tensor, "R B *S"]
    ) -> Float[Tensor, "R B *S"]:
        """Project each of the R x B samples of `value`; `entry` is where the phase began.

        R counts the searches of all images.
        """


@final
@dataclass(frozen=True, kw_only=True)
class L1Ball(Projection):
    """`argmin_y |y - value|_2` subject to `|y - entry|_1 <= r`, for each sample.

    Exactly one of radius and share is given. A share means the same in every generator, an
    absolute radius only in the one it was chosen for.

    Args:
        radius: r itself.
        share: r as a multiple of the entry's L1 norm.

    Source: Fang et al., GIFD, ICCV 2023, Eq. 6; the set from Daras et al., ILO, ICML 2021.
    """

    radius: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [r for r in (self.radius, self.share) if r is not None]
        if len(given) != 1 or given[0] <= 0:
            raise InputError(
                "expected an L1 ball with one positive radius or share, got "
                f"radius={self.radius}, share={self.share}"
            )

    def __call__(
        self, value: Float[Tensor, "R B *S"], entry: Float[Tensor, "R B *S"]
    ) -> Float[Tensor, "R B *S"]:
        """`entry` plus the projected deviation."""
        rows = entry.shape[0] * entry.shape[1]
        if self.radius is not None:
            radii = entry.new_full((rows,), self.radius, dtype=torch.float64)
        else:
            share = self.share if self.share is not None else 0.0
            radii = share * entry.reshape(rows, -1).abs().sum(1, dtype=torch.float64)
        deviation = (value - entry).reshape(rows, -1)
        projected = project_l1(deviation, radii)
        if projected is deviation:
            return value
        return entry + projected.reshape(entry.shape)


@final
@dataclass(frozen=True, kw_only=True)
class Sphere(Projection):
    """Rescale each sample to the Euclidean norm it had on entry: `value * |entry| / |value|`.

    A zero vector, equally near to all points of the sphere, is mapped to the entry.

    Args:
        each: rescale separately along a sample's first axis, e.g. each style of a w+ (L, D), or
            the single channel of a noise map.

    Source: Menon et al., PULSE, CVPR 2020; the latent phase of GIFD with BigGAN, and, with `each`,
    the latents and noise maps of every phase of its code with StyleGAN2.
    """

    each: bool = False

    def __call__(
        self, value: Float[Tensor, "R B *S"], entry: Float[Tensor, "R B *S"]
    ) -> Float[Tensor, "R B *S"]:
        """The nearest point on the entry's sphere."""
        dims = tuple(range(3 if self.each else 2, value.ndim))
        radius = entry.square().sum(dims, keepdim=True, dtype=torch.float64).sqrt()
        norm = value.square().sum(dims, keepdim=True, dtype=torch.float64).sqrt()
        scaled = value * (radius / norm.clamp_min(1e-30)).to(value.dtype)
        return torch.where(norm == 0, entry, scaled)


@final
@dataclass(frozen=True)
class Chain(Projection):
    """Projections in sequence. The result lies in the last set, and only near the others.

    Args:
        projections: in the order of application.
    """

    projections: tuple[Projection, ...]

    def __call__(
        self, value: Float[Tensor, "R B *S"], entry: Float[Tensor, "R B *S"]
    ) -> Float[Tensor, "R B *S"]:
        """Apply all, with the same entry."""
        for projection in self.projections:
            value = projection(value, entry)
        return value


def project_l1(v: Float[Tensor, "N M"], radius: Float[Tensor, "N"]) -> Float[Tensor, "N M"]:
    """Project each row onto its L1 ball around 0, exactly.

    Rows inside the ball are unchanged; if all are, a CPU returns the same tensor. For the others
    the result is `sign(v) max(|v| - t, 0)` with t such that its L1 norm is r: the root of the
    convex, piecewise linear `sum max(|v| - t, 0) - r`. A CPU finds it by Newton's method; an
    accelerator by sorting, which reads nothing back to the host.
    """
    return by_newton(v, radius) if v.device.type == "cpu" else by_sorting(v, radius)


def by_sorting(v: Float[Tensor, "N M"], radius: Float[Tensor, "N"]) -> Float[Tensor, "N M"]:
    """`project_l1` by sorting: with u the sorted |v|, t is the largest
    `(u_1 + ... + u_j - r) / j` that is below u_j.

    Source: Duchi et al., Efficient Projections onto the l1-Ball, ICML 2008, Fig. 1.
    """
    exact = v.dtype if v.device.type == "mps" else torch.float64
    size = v.abs().to(exact)
    down = size.sort(1, descending=True).values
    places = torch.arange(1, v.shape[1] + 1, device=v.device, dtype=exact)
    over = (down.cumsum(1) - radius[:, None].to(exact)) / places
    last = (down > over).sum(1, keepdim=True).clamp_min(1) - 1
    threshold = over.gather(1, last)
    shrunk = torch.copysign((size - threshold).clamp_min(0), v).to(v.dtype)
    outside = size.sum(1) > radius.to(exact) * (1 + 1e-6)
    return torch.where(outside[:, None], shrunk, v)


def by_newton(v: Float[Tensor, "N M"], radius: Float[Tensor, "N"]) -> Float[Tensor, "N M"]:
    """`project_l1` by Newton's method from below, which ends after finitely many steps, most
    often fewer than ten: `t <- (sum of |v| above t  -  r) / (count of |v| above t)`.

    Source: Michelot, A finite algorithm for finding the projection of a point onto the
    canonical simplex of R^n, 1986; Condat, Fast projection onto the simplex, 2016.
    """
    size = v.abs()
    norms = size.sum(1, dtype=torch.float64)
    outside = norms > radius * (1 + 1e-6)
    if not bool(outside.any()):
        return v
    everything = bool(outside.all())
    rows = size if everything else size[outside]
    r = radius if everything else radius[outside]
    threshold = ((norms if everything else norms[outside]) - r) / rows.shape[1]  # (n,)
    count = torch.full_like(threshold, rows.shape[1])
    while True:
        above = rows > threshold[:, None]
        fewer = above.sum(1, dtype=torch.float64)
        if bool((fewer == count).all()):
            break
        count = fewer
        total = torch.where(above, rows, 0).sum(1, dtype=torch.float64)
        threshold = torch.maximum(threshold, (total - r) / count.clamp_min(1))
    shrunk = (rows - threshold[:, None]).clamp_min(0).to(v.dtype)  # in float64: r may be << |v|
    result = v.clone()
    result[outside] = torch.copysign(shrunk, v[outside])
    return result
