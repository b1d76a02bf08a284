"""Loading: weights into a network, which may not be larger than they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gifd.errors import WeightsError, one_line

Net = TypeVar("Net", bound=nn.Module)


def load_weights(
    build: Callable[[], Net],
    tensors: Mapping[str, Tensor],
    what: str,
    optional: tuple[str, ...] = (),
) -> Net:
    """The network that `build()` makes, with these weights.

    Sizes are inferred from single tensors of a file, and inconsistent ones could ask for a network
    larger than the memory. So building stops when the network is larger than the weights.

    Args:
        build: makes the network from the inferred sizes.
        tensors: by the network's names.
        what: the network's kind, for errors.
        optional: endings of the names that may be missing.

    Raises:
        WeightsError: names or shapes differ.
    """
    try:
        with _Bounded(2 * sum(tensor.numel() for tensor in tensors.values()) + 4096):
            network = build()
    except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise WeightsError(
            f"expected the weights of one {what}, got sizes that do not fit: {one_line(error)}"
        ) from None
    wanted = {name: tuple(part.shape) for name, part in network.state_dict().items()}
    faults = [
        f"{name} is missing"
        for name in wanted
        if name not in tensors and not name.endswith(optional)
    ]
    faults += [f"{name} is unknown" for name in tensors if name not in wanted]
    faults += [
        f"size mismatch, {name} is {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more faults" if len(faults) > 3 else ""
        said = ", ".join(one_line(fault, 80) for fault in faults[:3])
        raise WeightsError(f"expected the weights of one {what}, got others: {said}{more}")
    network.load_state_dict(dict(tensors), strict=False)
    return network


_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


class _Bounded(TorchFunctionMode):
    """A context that limits the total size of new tensors."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _MAKERS:
            size = args if not args or isinstance(args[0], int) else args[0]
            self.left -= math.prod(size)
            if self.left < 0:
                raise ValueError("they ask for a network larger than themselves")
        return func(*args, **(kwargs or {}))
