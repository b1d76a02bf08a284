"""Kernels: a forward pass made of operations that can be differentiated twice.

PyTorch fuses attention into kernels without a second derivative, and a transformer encoder in
eval mode into one without any. An attack needs the second derivative. The unfused functions give
the same values, a little slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import grad
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


def slope(
    function: Callable[[Mapping[str, Tensor]], Tensor],
    at: Mapping[str, Tensor],
    inputs: Sequence[Tensor] = (),
) -> dict[str, Tensor]:
    """The gradient of a scalar function of named tensors.

    Within a transform of `torch.func` it is `torch.func.grad`; outside plain autograd, which
    gives the same with less overhead.

    Args:
        function: of the named tensors.
        at: where its gradient is taken.
        inputs: other tensors that it uses. The gradient has a graph if one of them or of `at`
            requires one.
    """
    if transformed():
        slopes: dict[str, Tensor] = grad(function)(dict(at))
        return slopes
    again = torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *at.values()))
    with torch.enable_grad():
        own = {n: t if t.requires_grad else t.detach().requires_grad_() for n, t in at.items()}
        value = function(own)
        if not value.requires_grad:
            return {name: torch.zeros_like(tensor) for name, tensor in own.items()}
        found = torch.autograd.grad(
            value, list(own.values()), create_graph=again, materialize_grads=True
        )
    return dict(zip(own, found, strict=True))


def transformed() -> bool:
    """Whether a transform of `torch.func` is active; True if PyTorch does not say."""
    level = getattr(torch._C._functorch, "maybe_current_level", None)
    return level is None or level() is not None


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
