"""Replaces every ReLU-like call of a victim, as module, function or method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FLAT = 1e-12
"""Added to a spread, so that it is differentiable where all inputs of a layer are equal."""


class ReLUMode(TorchFunctionMode):
    """A context that intercepts calls, not modules, and so works for any unmodified victim.

    Leaky ReLUs, PReLUs, ReLU6 and hard tanh are written in terms of ReLUs.

    Args:
        width: of the replacement, as a multiple of its inputs' standard deviation.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def instead(self, a: Tensor, h: Tensor) -> Tensor:
        """The replacement of `max(a, 0)`.

        Args:
            a: the inputs.
            h: the width in a's units, a differentiable scalar: `width * std(a)`.
        """

    def relu(self, a: Tensor, inplace: bool = False) -> Tensor:
        if inplace:
            return a.copy_(self.relu(a.clone()))
        return self.instead(a, self.width * (a.var(correction=0) + FLAT**2).sqrt())

    def leaky_relu(self, a: Tensor, slope: float = 0.01, inplace: bool = False) -> Tensor:
        if inplace:
            return a.copy_(self.leaky_relu(a.clone(), slope))
        return slope * a + (1 - slope) * self.relu(a)

    def prelu(self, a: Tensor, weight: Tensor) -> Tensor:
        slope = weight.view(-1, *[1] * (a.ndim - 2)) if weight.numel() > 1 else weight
        return slope * a + (1 - slope) * self.relu(a)

    def hardtanh(
        self, a: Tensor, low: float = -1.0, high: float = 1.0, inplace: bool = False
    ) -> Tensor:
        if inplace:
            return a.copy_(self.hardtanh(a.clone(), low, high))
        return low + self.relu(a - low) - self.relu(a - high)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (F.relu, torch.relu, Tensor.relu):
            return self.relu(*args, **kwargs)
        if func in (torch.relu_, Tensor.relu_):
            return self.relu(args[0], inplace=True)
        if func in (F.prelu, torch.prelu):
            return self.prelu(*args, **kwargs)
        if func is F.leaky_relu:
            return self.leaky_relu(*args, **_renamed(kwargs, negative_slope="slope"))
        if func is F.relu6:
            return self.hardtanh(args[0], 0.0, 6.0, **kwargs)
        if func is F.hardtanh:
            return self.hardtanh(*args, **_renamed(kwargs, min_val="low", max_val="high"))
        return func(*args, **kwargs)


def _renamed(kwargs: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in kwargs.items()}
