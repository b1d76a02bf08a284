"""Kernels: a forward pass made of operations that can be differentiated twice.

PyTorch fuses attention into kernels whose derivative has no derivative, and a transformer's
encoder in eval mode into one that has none at all. An attack needs the second. The same
functions written out give the same values, a little slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def unfused() -> Iterator[None]:
    """A context in which attention and transformer encoders are written out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def once_only(total: Tensor) -> bool:
    """Whether a function marked `@once_differentiable` has a part in this sum of slopes.

    PyTorch puts a node there that raises, but passes it by where only the slope in chosen tensors
    is asked for: that function's share is then silently missing.
    """
    seen, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False
