"""Smoothed replay: ReLUs that are averaged over noise, so that no distance hangs on their flips.

The gradient of a ReLU network jumps wherever a ReLU's input changes sign, and most of its
distance to the observed one is such jumps: it is nearly as large for a picture of 25 dB as for
one of 13. Replayed with

    E[max(a + h n, 0)] = a Phi(a / h) + h phi(a / h),  n ~ N(0, 1),  h = width * std(a)

in place of `max(a, 0)`, forwards and backwards, the update is smooth in the image. The observed
update stays as it is: the truth's distance is then above 0, and distances of smoothed and exact
replays are not to be compared.

Source: ours; searches through ever less smoothed objectives are of Blake and Zisserman, Visual
Reconstruction, MIT Press 1987.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gifd.inversion.relus import ReLUMode


def smoothed_replay(width: float) -> AbstractContextManager[object]:
    """A context in which every ReLU-like call is averaged over noise on its inputs.

    Args:
        width: of the noise, as a multiple of the inputs' standard deviation; 0 leaves all exact.
    """
    return _Averaged(width) if width > 0 else nullcontext()


class _Averaged(ReLUMode):
    def instead(self, a: Tensor, h: Tensor) -> Tensor:
        t = a / h
        density = torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)
        smooth: Tensor = a * torch.special.ndtr(t) + h * density
        return smooth
