"""Trace: records all calls of one function in a forward pass, from any module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, eq=False)
class Call:
    """The given arguments of a call, by name, and its result."""

    arguments: Mapping[str, Any]
    result: Any


class Calls(TorchFunctionMode):
    """A context that records every call of a function, in order, in `made`.

    Args:
        function: for example `torch.nn.functional.linear`.
        names: names of its leading arguments.
        copied: arguments that the function modifies: their values before the call are recorded.
    """

    def __init__(
        self, function: Callable[..., Any], names: Sequence[str], copied: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.function, self.names, self.copied = function, names, copied
        self.made: list[Call] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not self.function:
            return func(*args, **kwargs)
        given = dict(zip(self.names, args, strict=False)) | kwargs
        for name in self.copied:
            if isinstance(given.get(name), Tensor):
                given[name] = given[name].detach().clone()
        result = func(*args, **kwargs)
        self.made.append(Call(given, result))
        return result
