"""Smoothed curvature: a replay whose second derivative includes the ReLUs' sign changes.

The update is piecewise smooth in the image and jumps where a ReLU's input changes sign.
Autograd's second derivative ignores the jumps. Here the forward pass and the first backward pass
stay exact; only the derivative *of the ReLU's mask* is replaced by a kernel: for pre-activations
`a` of a layer

    relu'(a)  = [a > 0]                                      (exact)
    relu''(a) = k(a) = s (1 - s) / h,  s = sigmoid(a / h),  h = width * std(a)

instead of the Dirac impulse that autograd drops. Values and distances do not change.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gifd.search.relus import FLAT, ReLUMode


def smoothed_curvature(width: float) -> AbstractContextManager[object]:
    """A context in which every ReLU-like call has the smoothed second derivative.

    It intercepts calls, not modules, and so works for any victim without changing it.

    Args:
        width: kernel width c as a multiple of the pre-activations' standard deviation;
            0 leaves autograd as it is.
    """
    return _Curved(width) if width > 0 else nullcontext()


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
        return grad * s * (1 - s) / h, None


class _ReLU(torch.autograd.Function):
    """`max(a, 0)` with the derivative `_Mask`, so that a second derivative exists."""

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


class _Curved(ReLUMode):
    def instead(self, a: Tensor, h: Tensor) -> Tensor:
        flat = h <= 2 * FLAT * self.width  # all inputs are equal: nothing to smooth
        return _ReLU.apply(a, h.detach().masked_fill(flat, torch.inf))  # type: ignore[no-any-return, no-untyped-call]
