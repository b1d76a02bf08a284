"""Smoothed curvature: a replay whose second derivative sees the ReLUs flip.

The update is piecewise smooth in the image and jumps where a ReLU's input changes sign.
Autograd's second derivative knows the pieces and none of the jumps. Here the forward pass
and the first backward pass stay exact; only the derivative *of the ReLU's mask* is given a
kernel: for pre-activations `a` of a layer

    relu'(a)  = [a > 0]                                      (exact)
    relu''(a) = k(a) = s (1 - s) / h,  s = sigmoid(a / h),  h = width * std(a)

in place of a Dirac impulse that autograd drops. Values and distances do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def smoothed_curvature(width: float) -> AbstractContextManager[object]:
    """A context in which every ReLU-like call has the smoothed second derivative.

    It catches the calls, not the modules: any victim is replayed so without touching it.

    Args:
        width: kernel width c as a multiple of the pre-activations' standard deviation;
            0 leaves autograd as it is.
    """
    return _Smoothed(width) if width > 0 else nullcontext()


_FLAT = 1e-12
"""Widths at or below this mean a layer whose inputs are all alike: no kernel, no curvature."""


class _Mask(torch.autograd.Function):
    """`[a > 0]` with the derivative k(a)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, h: Tensor) -> Tensor:
        return (a > 0).to(a.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, h = ctx.saved_tensors
        s = torch.sigmoid(a / h)
        kernel = torch.where(h > _FLAT, s * (1 - s) / h, 0)
        return grad * kernel, None


class _ReLU(torch.autograd.Function):
    """`max(a, 0)` whose derivative is `_Mask`, so that a second derivative exists."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, h: Tensor) -> Tensor:
        return a.clamp_min(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, h = ctx.saved_tensors
        return grad * _Mask.apply(a, h), None  # type: ignore[no-untyped-call]


class _Smoothed(TorchFunctionMode):
    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def relu(self, a: Tensor, inplace: bool = False) -> Tensor:
        if inplace:
            return a.copy_(self.relu(a.clone()))
        h = (self.width * a.detach().std(correction=0)).clamp_min(_FLAT)
        return _ReLU.apply(a, h)  # type: ignore[no-any-return, no-untyped-call]

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
