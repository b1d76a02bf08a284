"""Loading: weights into the network that they say they are, which is built only if they fit it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from gifd.errors import WeightsError, one_line

Net = TypeVar("Net", bound=nn.Module)


def load_weights(
    build: Callable[[], Net],
    tensors: Mapping[str, Tensor],
    what: str,
    optional: tuple[str, ...] = (),
) -> Net:
    """The network that `build()` makes, with these weights.

    Sizes are read off a file's tensors one by one, and two that do not belong together may ask
    for a network larger than any memory. So it is first built without memory and compared.

    Args:
        build: makes the network of the sizes that were read.
        tensors: by the network's names.
        what: the network's kind, for errors.
        optional: endings of what may be missing.

    Raises:
        WeightsError: names or shapes differ.
    """
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            wanted = {name: tuple(part.shape) for name, part in build().state_dict().items()}
    except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        raise WeightsError(
            f"expected the weights of one {what}, got sizes that none has: {one_line(error)}"
        ) from None
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
        said = ", ".join(one_line(fault) for fault in faults[:3])
        raise WeightsError(f"expected the weights of one {what}, got others: {said}{more}")
    network = build()
    network.load_state_dict(dict(tensors), strict=False)
    return network
