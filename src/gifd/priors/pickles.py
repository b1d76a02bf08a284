"""NVIDIA's network pickles, read without running code from them.

Such a file is a pickle of modules with their own source code, which `pickle.load` would execute.
Here every name in the file is looked up in a short table of inert replacements: containers,
tensors, numbers. A module becomes a `Network` with its class name, arguments and tensors. Any
other name is refused, and no code from the file is called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np
import torch
from torch import Tensor

from gifd.errors import WeightsError, one_line
from gifd.files import is_file
from gifd.tensor_files import load_torch

_MOST_NETWORKS = 1000


class Network:
    """A pickled module: its class name, arguments and content.

    Attributes:
        kind: its class name.
        state: its attributes; `_parameters`, `_buffers` and `_modules` among them.
    """

    def __init__(self, meta: object) -> None:
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise pickle.UnpicklingError("a network without a state")
        self.kind = str(meta.get("class_name"))
        self.state: dict[str, Any] = meta["state"]

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a network whose state is not where it belongs")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers by dotted name, detached.

        Raises:
            WeightsError: networks that contain themselves, or too many.
        """
        ahead: list[tuple[str, Network]] = [("", self)]
        seen = 0
        while ahead:
            prefix, network = ahead.pop(0)
            seen += 1
            if seen > _MOST_NETWORKS:
                raise WeightsError(f"expected at most {_MOST_NETWORKS} networks inside, got more")
            for group in ("_parameters", "_buffers"):
                for name, tensor in network._group(group):
                    if isinstance(tensor, Tensor):
                        yield f"{prefix}{name}", tensor.detach()
            inside = [(f"{prefix}{name}.", child) for name, child in network.children()]
            ahead = inside + ahead

    def children(self) -> list[tuple[str, Network]]:
        """The modules inside, by name."""
        return [(n, child) for n, child in self._group("_modules") if isinstance(child, Network)]

    def _group(self, name: str) -> list[tuple[str, Any]]:
        group = self.state.get(name)
        if not isinstance(group, dict):
            return []
        return [(key, value) for key, value in group.items() if isinstance(key, str)]

    def child(self, path: str) -> Network | None:
        """The module at a dotted name, or None."""
        found: Network | None = self
        for part in path.split("."):
            found = dict(found.children()).get(part) if found is not None else None
        return found


class _Inert:
    """Replaces an irrelevant object: it accepts arguments and a state and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Dict(dict[str, Any]):
    """A dict that also accepts a pickled object's state."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


class _DType(_Inert):
    """The name of a NumPy dtype; its further arguments are ignored."""

    def __init__(self, kind: object, *_: object) -> None:
        self.kind = str(kind)


@final
class _Call:
    """A function that a file may call. It accepts no state, so a file cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a state for a function")


def _tensor(
    storage: Any, offset: Any, size: Sequence[Any], stride: Sequence[Any], *_: object
) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without a storage")
    shape, steps = [int(n) for n in size], [int(n) for n in stride]
    last = int(offset) + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if min([0, int(offset), *shape, *steps]) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor larger than its storage")
    empty = torch.empty(0, dtype=storage.dtype)
    return empty.set_(storage._untyped_storage, int(offset), tuple(shape), tuple(steps))


def _parameter(data: Any, *_: object) -> Any:
    return data


def _storage(content: bytes) -> Any:
    return load_torch(io.BytesIO(content))


def _scalar(kind: Any, content: Any = b"") -> object:
    if isinstance(kind, _DType) and kind.kind in ("f2", "f4", "f8", "i4", "i8", "u1", "b1"):
        return np.frombuffer(content, dtype=f"<{kind.kind}")[0].item()
    return None


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Network,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch.storage", "_load_from_bytes"): _Call(_storage),
    ("torch", "device"): _Inert,
    ("torch", "Size"): torch.Size,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Inert,
    ("numpy.core.multiarray", "scalar"): _Call(_scalar),
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "scalar"): _Call(_scalar),
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_CONSTANTS = ("float16", "bfloat16", "float32", "float64", "contiguous_format", "channels_last")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _CONSTANTS:
            return getattr(torch, name)
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("a reference to another file")


class _RefusedError(Exception):
    pass


def _check_places(whole: bytes) -> None:
    """Refuse memo indices larger than any writer uses: the unpickler would allocate memory."""
    for count, (code, argument, _) in enumerate(pickletools.genops(whole)):
        if code.name in _PUTS and isinstance(argument, int) and argument > count:
            raise pickle.UnpicklingError(f"an object at place {argument:,}")


def read_networks(path: Path) -> dict[str, Network]:
    """Read the networks of an NVIDIA pickle by name (`G`, `D`, `G_ema`).

    Raises:
        WeightsError: missing, damaged, not such a pickle, or containing other names.
    """
    try:
        if not is_file(path):
            raise FileNotFoundError
        whole = path.read_bytes()
        _check_places(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # storages are deprecated; old files hold them
            content = _Reader(io.BytesIO(whole)).load()
    except _RefusedError as refused:
        raise WeightsError(
            f"{path} asks for '{one_line(refused, 80)}', which no network needs, so it was not "
            "loaded: expected a StyleGAN2 pickle from NVIDIA's PyTorch code"
        ) from None
    except FileNotFoundError:
        raise WeightsError(
            f"expected a weights file, found none at {path}: check the path"
        ) from None
    except Exception as error:  # a damaged pickle raises nearly every type
        raise WeightsError(
            f"{path} is damaged or not a network pickle ({one_line(error, 120)}): expected a "
            "StyleGAN2 pickle from NVIDIA's PyTorch code"
        ) from None
    found = {}
    if isinstance(content, dict):
        found = {str(key): net for key, net in content.items() if isinstance(net, Network)}
    if not found:
        raise WeightsError(f"{path} holds no network: expected a StyleGAN2 pickle with 'G_ema'")
    return found
