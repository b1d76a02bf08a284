"""Smoothed replay: ReLUs averaged over noise, so that the distance is smooth in the image.

The gradient of a ReLU network jumps wherever a ReLU's input changes sign, and most of the
matching distance comes from such jumps: it is almost as large for an image at 25 dB as for one
at 13 dB. Replayed with

    E[max(a + h n, 0)] = a Phi(a / h) + h phi(a / h),  n ~ N(0, 1),  h = width * std(a)

in place of `max(a, 0)`, forward and backward, the update is smooth in the image. The width h
depends on the input, and its derivative is part of the gradient. The observed update is
unchanged, so the private image has a distance above 0, and distances of smoothed and exact
replays are not comparable.

Source: ours; searching less and less smoothed objectives is due to Blake and Zisserman, Visual
Reconstruction, MIT Press 1987.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gifd.search.relus import ReLUMode


def smoothed_replay(width: float) -> AbstractContextManager[object]:
    """A context in which every ReLU-like call is averaged over noise on its inputs.

    Args:
        width: of the noise, as a multiple of the inputs' standard deviation; 0 is exact.
    """
    return _Averaged(width) if width > 0 else nullcontext()


class _Averaged(ReLUMode):
    def instead(self, a: Tensor, h: Tensor) -> Tensor:
        return _Mean.apply(a, h)  # type: ignore[no-any-return, no-untyped-call]


class _Mean(torch.autograd.Function):
    """`f(a, h) = a Phi(a / h) + h phi(a / h)`, with `df/da = Phi(a / h)` and `df/dh = phi(a / h)`.

    The derivatives are explicit because autograd's would suffer from cancellation.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, h: Tensor) -> Tensor:
        t = a / h
        mean: Tensor = a * torch.special.ndtr(t) + h * _density(t)
        return mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        t = a / h
        return grad * torch.special.ndtr(t), (grad * _density(t)).sum()


def _density(t: Tensor) -> Tensor:
    return (-0.5 * t.square()).exp() / math.sqrt(2 * math.pi)
