"""Kernels: a forward pass made of operations that can be differentiated twice.

PyTorch fuses attention into kernels without a second derivative, and a transformer encoder in
eval mode into one without any. An attack needs the second derivative. The unfused functions give
the same values, a little slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def unfused() -> Iterator[None]:
    """A context in which attention and transformer encoders are not fused."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def once_only(total: Tensor) -> bool:
    """Whether a function marked `@once_differentiable` contributes to this sum of gradients.

    PyTorch inserts a node that raises, but skips it when gradients of chosen tensors are
    requested: the function's contribution is then silently missing.
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
