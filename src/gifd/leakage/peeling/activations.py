"""Activations that can be put in: functions whose output is enough to know them by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(ABC):
    """A function without parameters."""

    @abstractmethod
    def __call__(self, before: Tensor) -> Tensor:
        """The output."""

    @abstractmethod
    def known(self, before: Tensor, value: Tensor) -> Tensor:
        """`value`, with the derivative of this function there."""

    @abstractmethod
    def cleaned(self, value: Tensor) -> Tensor:
        """An output that was measured with a small error, within the function's range."""

    def doubtful(self, value: Tensor) -> Tensor:
        """Where the error of a measured output may change its derivative."""
        return torch.zeros_like(value, dtype=torch.bool)

    def away(self, before: Tensor, value: Tensor) -> Tensor:
        """How far the output at `before` is from `value`; 0 where it is reached."""
        return self(before) - value


class _Pointwise(Activation):
    """A function of each number whose output determines its derivative."""

    @abstractmethod
    def slope(self, value: Tensor) -> Tensor:
        """The derivative where the output is `value`."""

    def known(self, before: Tensor, value: Tensor) -> Tensor:
        """`value`, with the derivative there."""
        return value + self.slope(value) * (before - before.detach())


@final
@dataclass(frozen=True)
class Rectifier(_Pointwise):
    """ReLU, leaky ReLU and ReLU6.

    Args:
        leak: the derivative below 0.
        ceiling: the largest output.
    """

    leak: float = 0.0
    ceiling: float = float("inf")

    def __call__(self, before: Tensor) -> Tensor:
        """`min(before, ceiling)` above 0, the leak below."""
        if self.leak:
            return F.leaky_relu(before, self.leak)
        return before.clamp(0, self.ceiling)

    def slope(self, value: Tensor) -> Tensor:
        """1 above 0 and below the ceiling; the leak below 0."""
        inside = ((value > 0) & (value < self.ceiling)).to(value.dtype)
        return inside + self.leak * (value < 0) if self.leak else inside

    def cleaned(self, value: Tensor) -> Tensor:
        """Small values are 0 if there is no leak; what is negative shows how large errors are."""
        if self.leak:
            return value
        error = 3 * _error(value)
        value = torch.where(value > error, value, 0)
        return torch.where(value > self.ceiling - error.clamp_min(1e-12), self.ceiling, value)

    def doubtful(self, value: Tensor) -> Tensor:
        """Where it may be 0 or not: the small ones."""
        if self.leak:
            return super().doubtful(value)
        return value < 20 * _error(value).max()

    def away(self, before: Tensor, value: Tensor) -> Tensor:
        """Before the function where it is invertible, after it elsewhere."""
        if self.leak:
            return F.leaky_relu(before, self.leak) - value
        high = before - self.ceiling
        return torch.where(
            value <= 0,
            before.clamp_min(0),
            torch.where(value < self.ceiling, before - value, high.clamp_max(0)),
        )


def _error(value: Tensor) -> Tensor:
    """The largest error of each channel of what is never negative: seen where it is negative."""
    below = -value.clamp_max(0)
    typical = below.square().sum() / (below > 0).sum().clamp_min(1)
    channels = below.amax([d for d in range(value.ndim) if d != 1], keepdim=True)
    return torch.maximum(channels, 3 * typical.sqrt())


@final
@dataclass(frozen=True)
class Sigmoid(_Pointwise):
    """The logistic function."""

    def __call__(self, before: Tensor) -> Tensor:
        """`1 / (1 + exp(-before))`."""
        return before.sigmoid()

    def slope(self, value: Tensor) -> Tensor:
        """`v (1 - v)`."""
        return value * (1 - value)

    def cleaned(self, value: Tensor) -> Tensor:
        """Between 0 and 1."""
        return value.clamp(0, 1)


@final
@dataclass(frozen=True)
class Tanh(_Pointwise):
    """The hyperbolic tangent."""

    def __call__(self, before: Tensor) -> Tensor:
        """`tanh(before)`."""
        return before.tanh()

    def slope(self, value: Tensor) -> Tensor:
        """`1 - v^2`."""
        return 1 - value.square()

    def cleaned(self, value: Tensor) -> Tensor:
        """Between -1 and 1."""
        return value.clamp(-1, 1)


@final
@dataclass(frozen=True, kw_only=True)
class MaxPool(Activation):
    """Max-pooling. Its output does not tell which input it was, so the derivative stays unknown.

    Args:
        kernel, stride, padding, dilation, ceil: as in PyTorch.
    """

    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None
    padding: int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    ceil: bool

    def __call__(self, before: Tensor) -> Tensor:
        """The largest number of each window."""
        return F.max_pool2d(
            before, self.kernel, self.stride, self.padding, self.dilation, ceil_mode=self.ceil
        )

    def known(self, before: Tensor, value: Tensor) -> Tensor:
        """`value`, with the derivative at `before`."""
        pooled = self(before)
        return value + (pooled - pooled.detach())

    def cleaned(self, value: Tensor) -> Tensor:
        """As it was measured."""
        return value


_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_LEAKY = (F.leaky_relu, F.leaky_relu_)
_SIGMOIDS = (F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_)
_TANHS = (F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_)
_CLIPS = (F.hardtanh, F.hardtanh_)


def activation(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Activation | None:
    """The activation that this call applies; None for another function."""
    if function in _RELUS:
        return Rectifier()
    if function is F.relu6:
        return Rectifier(ceiling=6.0)
    if function in _SIGMOIDS:
        return Sigmoid()
    if function in _TANHS:
        return Tanh()
    if function in _LEAKY:
        leak = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
        return Rectifier(leak=float(leak)) if leak > 0 else None
    if function is F.max_pool2d:
        order = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(order, args, strict=False)) | dict(kwargs)
        return MaxPool(
            kernel=_size(given["kernel_size"]),
            stride=None if given.get("stride") is None else _size(given["stride"]),
            padding=_size(given.get("padding", 0)),
            dilation=_size(given.get("dilation", 1)),
            ceil=bool(given.get("ceil_mode", False)),
        )
    if function in _CLIPS:
        low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
        high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
        return Rectifier(ceiling=float(high)) if low == 0 else None
    return None


def _size(value: int | Sequence[int]) -> int | tuple[int, ...]:
    return value if isinstance(value, int) else tuple(value)
