"""Optimisers: pure steps `(memory, x, gradient) -> (memory, x)` on all searches at once.

Every tensor has the leading axes (N, R) of images and restarts, or none. On an accelerator nothing
is read back to the host. A step may overwrite the memory that it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.search.choice import chosen
from gifd.search.schedules import Schedule, WarmupCosine

Memory = Mapping[str, Tensor]
"""An optimiser's state."""


class Optimizer(ABC):
    """Updates variables from the gradients of an objective."""

    @property
    def noisy(self) -> bool:
        """Whether each step needs fresh standard normal noise."""
        return False

    @abstractmethod
    def init(self, x: Float[Tensor, "N R M"], steps: int) -> Memory:
        """The memory before the first of `steps` steps."""

    @abstractmethod
    def step(
        self,
        memory: Memory,
        x: Float[Tensor, "N R M"],
        gradient: Float[Tensor, "N R M"],
        objective: Float[Tensor, "N R"],
        noise: Float[Tensor, "N R M"] | None,
    ) -> tuple[Memory, Float[Tensor, "N R M"]]:
        """Move every search by its own gradient.

        Args:
            memory: of the last step; may be overwritten.
            x: where gradient and objective were evaluated; must not be overwritten.
            gradient: of the objective; zero for a dropped search.
            objective: its value; zero for a dropped search.
            noise: standard normal, if the optimiser is `noisy`.
        """


@final
@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, element by element: with m and v the running means of g and g^2,

        x <- x - rate_t (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + 1e-8).

    Args:
        lr: peak learning rate.
        schedule: of the learning rate over the phase.
        signed: use the sign of the gradient as g (Inverting Gradients).
        noise: after a step, add `noise * rate_t * N(0, 1)` (Langevin dynamics, GradInversion).

    Source: Kingma and Ba, ICLR 2015, b1 = 0.9, b2 = 0.999.

    Differs from the official code: the schedule is read at the end of a step, not at its start,
    so the first evaluation is not spent on a learning rate of 0.
    """

    lr: float = 0.1
    schedule: Schedule = WarmupCosine()
    signed: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.noise >= 0:
            raise InputError(
                f"expected lr > 0 and noise >= 0, got lr={self.lr}, noise={self.noise}"
            )

    @property
    def noisy(self) -> bool:
        """Whether noise is added."""
        return self.noise > 0

    def init(self, x: Float[Tensor, "N R M"], steps: int) -> Memory:
        """Moments of zero, the schedule stretched over `steps`."""
        rates = [self.lr * self.schedule((t + 1) / steps) for t in range(steps)]
        return _moments(x, rates)

    def step(
        self,
        memory: Memory,
        x: Float[Tensor, "N R M"],
        gradient: Float[Tensor, "N R M"],
        objective: Float[Tensor, "N R"],
        noise: Float[Tensor, "N R M"] | None,
    ) -> tuple[Memory, Float[Tensor, "N R M"]]:
        """One step at the scheduled rate."""
        rate = _rate(memory)
        memory, moved = _adam(memory, x, gradient.sign() if self.signed else gradient, rate)
        if noise is not None:
            moved = moved + self.noise * rate * noise
        return memory, moved


@final
@dataclass(frozen=True, kw_only=True)
class GradientRegularized(Optimizer):
    """AdamW on the signs of two gradients: at the iterate and at a probe one step ahead.

    `sign(g(h)) (1 - share) + sign(g(h')) share`, with the probe h' one AdamW step ahead of h.
    The moments are updated by both. This prefers flat solutions, where both gradients agree.
    Steps alternate: one goes from h to its probe, the next from h to the new h.

    Args:
        lr: peak learning rate.
        schedule: of the learning rate over the phase.
        share: weight of the probe's gradient.
        decay: AdamW's weight decay.

    Source: Fan et al., FedLeak, USENIX Security 2025, arXiv:2506.08435, as in its published code.
    """

    lr: float = 0.01
    schedule: Schedule = WarmupCosine(warmup=1e-9, decay=1.0)
    share: float = 0.3
    decay: float = 0.01

    def __post_init__(self) -> None:
        if not self.lr > 0 or not 0 <= self.share <= 1 or not self.decay >= 0:
            raise InputError(
                "expected lr > 0, share in [0, 1] and decay >= 0, got "
                f"lr={self.lr}, share={self.share}, decay={self.decay}"
            )

    def init(self, x: Float[Tensor, "N R M"], steps: int) -> Memory:
        """Moments of zero; a probe and the step after it share a rate."""
        pairs = (steps + 1) // 2
        rates = [self.lr * self.schedule((t // 2 + 1) / pairs) for t in range(steps)]
        return {**_moments(x, rates), "here": x, "sign": torch.zeros_like(x)}

    def step(
        self,
        memory: Memory,
        x: Float[Tensor, "N R M"],
        gradient: Float[Tensor, "N R M"],
        objective: Float[Tensor, "N R"],
        noise: Float[Tensor, "N R M"] | None,
    ) -> tuple[Memory, Float[Tensor, "N R M"]]:
        """To the probe, or from the iterate before it to the next iterate."""
        probing = memory["count"] % 2 == 0
        rate, sign = _rate(memory), gradient.sign()
        here = torch.where(probing, x, memory["here"])
        along = torch.where(probing, sign, torch.lerp(memory["sign"], sign, self.share))
        moments, moved = _adam(memory, here * (1 - rate * self.decay), along, rate)
        return {**moments, "here": here, "sign": sign}, moved


@final
@dataclass(frozen=True, kw_only=True)
class LBFGS(Optimizer):
    """L-BFGS without a line search, separately for each search.

    Args:
        lr: step length along the quasi-Newton direction.
        history: number of pairs (step, gradient difference) in memory.

    The objective is divided by its first value, so that these thresholds do not depend on the
    scale of an update: no step if all entries of the gradient are below 1e-7 or the directional
    derivative is above -1e-9; no pair whose product is below 1e-10.

    Source: Liu and Nocedal, Mathematical Programming 1989, with the thresholds and the first step
    of `torch.optim.LBFGS`; 20 steps are one call of an `LBFGS(max_iter=20)`.
    """

    lr: float = 1.0
    history: int = 100

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.history < 1:
            raise InputError(
                f"expected lr > 0 and history >= 1, got lr={self.lr}, history={self.history}"
            )

    def init(self, x: Float[Tensor, "N R M"], steps: int) -> Memory:
        """An empty history."""
        searches = x.shape[:2]
        return {
            "count": x.new_zeros(searches),
            "scale": x.new_zeros(searches),
            "gradient": torch.zeros_like(x),
            "moved": torch.zeros_like(x),
            "steps": x.new_zeros(*searches, 0, x.shape[2]),
            "changes": x.new_zeros(*searches, 0, x.shape[2]),
            "inverses": x.new_zeros(*searches, 0),
            "curvature": x.new_ones(searches),
        }

    def step(
        self,
        memory: Memory,
        x: Float[Tensor, "N R M"],
        gradient: Float[Tensor, "N R M"],
        objective: Float[Tensor, "N R"],
        noise: Float[Tensor, "N R M"] | None,
    ) -> tuple[Memory, Float[Tensor, "N R M"]]:
        """One quasi-Newton step."""
        tiny = torch.finfo(objective.dtype).tiny
        own = torch.where(objective > tiny, 1 / objective, 1.0)
        scale = torch.where(memory["scale"] == 0, own, memory["scale"])
        g = gradient * scale[..., None]  # (N, R, M)
        active = g.abs().amax(-1) > 1e-7  # (N, R)
        first = memory["count"] == 0

        change = g - memory["gradient"]
        product = _dot(change, memory["moved"])
        taken = (product > 1e-10) & ~first & active
        pushed = {
            "steps": _push(memory["steps"], memory["moved"], taken, self.history),
            "changes": _push(memory["changes"], change, taken, self.history),
            "inverses": _push(memory["inverses"], 1 / product, taken, self.history),
        }
        curvature = torch.where(taken, product / _dot(change, change), memory["curvature"])
        direction = torch.where(first[..., None], -g, _two_loops(-g, curvature, *pushed.values()))
        length = torch.where(first, (1 / g.abs().sum(-1)).clamp_max(1.0), 1.0) * self.lr
        moved = direction * length[..., None]
        fresh = {
            "count": memory["count"] + 1,
            "scale": scale,
            "gradient": g,
            "moved": moved,
            "curvature": curvature,
        }
        downhill = active & (_dot(g, direction) <= -1e-9)
        kept = {name: chosen(active, tensor, memory[name]) for name, tensor in fresh.items()}
        return {**kept, **pushed}, chosen(downhill, x + moved, x)


# -- inside ----------------------------------------------------------------------------


def _moments(x: Tensor, rates: list[float]) -> dict[str, Tensor]:
    """Adam's memory before its first step, and the rate of every step."""
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    return {
        "count": torch.zeros((), dtype=torch.long, device=x.device),
        "rates": torch.tensor(rates, dtype=exact, device=x.device),
        "mean": torch.zeros_like(x),
        "square": torch.zeros_like(x),
    }


def _rate(memory: Memory) -> Tensor:
    """The rate of this step; plain indexing would read the count back to the host."""
    return torch.take(memory["rates"], memory["count"])


def _adam(
    memory: Memory, x: Tensor, g: Tensor, rate: Tensor, b1: float = 0.9, b2: float = 0.999
) -> tuple[dict[str, Tensor], Tensor]:
    """A step of Adam; it overwrites the moments."""
    count = memory["count"] + 1
    mean = memory["mean"].lerp_(g, 1 - b1)
    square = memory["square"].mul_(b2).addcmul_(g, g, value=1 - b2)
    power = count.to(rate.dtype)
    size = rate / (1 - b1**power)
    root = square.sqrt().div_((1 - b2**power).sqrt()).add_(1e-8)
    moved = torch.addcdiv(x, mean, root.div_(-size))
    return {**memory, "count": count}, moved


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


def _push(pairs: Tensor, newest: Tensor, taken: Tensor, most: int) -> Tensor:
    """(N, R, H, ...) with the newest pair appended, where `taken`; at most `most` pairs.

    The other searches get a pair of zeros in front, which has no effect.
    """
    newest = newest[:, :, None]
    if taken.device.type == "cpu" and bool(taken.all()):
        return torch.cat([pairs[:, :, max(pairs.shape[2] + 1 - most, 0) :], newest], 2)
    longer = torch.cat([torch.zeros_like(newest), pairs], 2)[:, :, -most:]
    return chosen(taken, torch.cat([pairs, newest], 2)[:, :, -most:], longer)


def _two_loops(
    q: Tensor, curvature: Tensor, steps: Tensor, changes: Tensor, inverses: Tensor
) -> Tensor:
    """The approximate inverse Hessian times q: L-BFGS's two-loop recursion."""
    pairs = list(
        zip(steps.unbind(2), changes.unbind(2), inverses[..., None].unbind(2), strict=True)
    )
    shares = []
    for step, change, inverse in reversed(pairs):
        share = torch.linalg.vecdot(step, q)[..., None] * inverse  # (N, R, 1)
        q = torch.addcmul(q, change, share, value=-1)
        shares.append(share)
    r = q * curvature[..., None]
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        back = torch.linalg.vecdot(change, r)[..., None] * inverse
        r = torch.addcmul(r, step, share - back)
    return r
