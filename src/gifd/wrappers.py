"""Wrappers: the network inside the modules that libraries put around it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """The network itself, without what computes the same in another way.

    It is taken out of `DataParallel`, `DistributedDataParallel`, `torch.compile` and Opacus'
    modules of per-sample gradients. Opacus has put hooks on the network, which have no second
    derivative, so a copy without them is returned.
    """
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        elif hasattr(module, "to_standard_module"):
            wrapped: Any = copy.deepcopy(module)
            module = wrapped.to_standard_module()
        else:
            return module
