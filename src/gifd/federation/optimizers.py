"""Optimizers: how a client turns local gradients into steps, as pure, differentiable functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.updates import Update

Memory = tuple[Update, ...]
"""What an optimiser remembers between two steps: momentum, moments."""


class LocalOptimizer(ABC):
    """A client's optimiser: the same numbers as its namesake in `torch.optim`."""

    @abstractmethod
    def step(
        self, theta: Update, gradient: Update, memory: Memory, *, lr: float, number: int
    ) -> tuple[Update, Memory]:
        """One step.

        Args:
            theta: the weights before it.
            gradient: of the loss at these weights.
            memory: of the step before; empty before the first.
            lr: the learning rate of this step.
            number: of the step, from 1.

        Returns:
            the weights and the memory after it.
        """

    @property
    @abstractmethod
    def linear(self) -> LocalOptimizer:
        """The optimiser of the same step sizes that is linear in the gradients."""


@final
@dataclass(frozen=True, kw_only=True)
class SGD(LocalOptimizer):
    """Stochastic gradient descent, with momentum and weight decay if asked.

    With d = g + weight_decay theta and momentum m > 0: `v <- m v + (1 - dampening) d`, where the
    first v is d; the step is `-lr v`, or with Nesterov's momentum `-lr (d + m v)`. Without momentum
    it is `-lr d`.

    Args:
        momentum: in [0, 1).
        weight_decay: at least 0.
        dampening: in [0, 1).
        nesterov: needs momentum and no dampening.

    Source: Sutskever et al., On the Importance of Initialization and Momentum in Deep Learning,
    ICML 2013; as in `torch.optim.SGD`.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.momentum < 1 and 0 <= self.dampening < 1):
            raise InputError(
                "expected SGD with momentum and dampening in [0, 1), got "
                f"{self.momentum} and {self.dampening}"
            )
        _check_decay(self.weight_decay)
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            raise InputError(
                "expected Nesterov's momentum with momentum above 0 and no dampening, got "
                f"{self.momentum} and {self.dampening}"
            )

    def step(
        self, theta: Update, gradient: Update, memory: Memory, *, lr: float, number: int
    ) -> tuple[Update, Memory]:
        """One step of `torch.optim.SGD`."""
        d = gradient.add_scaled(theta, self.weight_decay) if self.weight_decay else gradient
        if not self.momentum:
            return theta.add_scaled(d, -lr), ()
        v = (memory[0] * self.momentum).add_scaled(d, 1 - self.dampening) if memory else d
        moved = d.add_scaled(v, self.momentum) if self.nesterov else v
        return theta.add_scaled(moved, -lr), (v,)

    @property
    def linear(self) -> LocalOptimizer:
        """Itself."""
        return self


@final
@dataclass(frozen=True, kw_only=True)
class Adam(LocalOptimizer):
    """Adam, or AdamW with decoupled weight decay.

    With g (plus weight_decay theta, unless decoupled): `m <- beta1 m + (1 - beta1) g`,
    `v <- beta2 v + (1 - beta2) g^2`; the step is `-lr m' / (sqrt(v') + eps)`, m' and v' being
    divided by `1 - beta^t`. Decoupled, `theta` is first multiplied by `1 - lr weight_decay`.

    A first step is `-lr g / (|g| + eps)`: it shows the signs of the gradient and hardly its size.

    Args:
        beta1, beta2: in [0, 1).
        eps: above 0.
        weight_decay: at least 0.
        decoupled: AdamW.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015; Loshchilov and
    Hutter, Decoupled Weight Decay Regularization, ICLR 2019; as in `torch.optim`.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 < self.eps < math.inf):
            raise InputError(
                "expected Adam with betas in [0, 1) and eps > 0, got "
                f"{self.beta1}, {self.beta2} and {self.eps}"
            )
        _check_decay(self.weight_decay)

    def step(
        self, theta: Update, gradient: Update, memory: Memory, *, lr: float, number: int
    ) -> tuple[Update, Memory]:
        """One step of `torch.optim.Adam` or `AdamW`."""
        g = gradient
        if self.weight_decay and self.decoupled:
            theta = theta * (1 - lr * self.weight_decay)
        elif self.weight_decay:
            g = g.add_scaled(theta, self.weight_decay)
        m, v = g * (1 - self.beta1), g.times(g) * (1 - self.beta2)
        if memory:
            m, v = m.add_scaled(memory[0], self.beta1), v.add_scaled(memory[1], self.beta2)
        size = lr / (1 - self.beta1**number)
        root = math.sqrt(1 - self.beta2**number)
        moved = m.times(v.map(lambda tensor: 1 / (_root(tensor) / root + self.eps)))
        return theta.add_scaled(moved, -size), (m, v)

    @property
    def linear(self) -> LocalOptimizer:
        """Plain steps of the same rate, with the decoupled weight decay."""
        return SGD(weight_decay=self.weight_decay if self.decoupled else 0.0)


def _root(tensor: Tensor) -> Tensor:
    """The square root, whose derivative at 0 is 0 instead of infinite."""
    return tensor.clamp_min(torch.finfo(tensor.dtype).tiny).sqrt()


def _check_decay(weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise InputError(f"expected a weight decay of at least 0, got {weight_decay}")
