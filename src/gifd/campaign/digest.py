"""Digest: a hash of a value's content, equal for equal settings in different processes."""

from __future__ import annotations

import hashlib
import inspect
import math
import struct
import sys
import sysconfig
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)

import torch
from torch import Tensor

from gifd.errors import InputError

PACKAGE = Path(__file__).parents[1]


class Digester:
    """SHA-256 of numbers, tensors, networks, dataclasses, functions, and whatever holds them.

    An object is hashed by its class and content: tensors by type, shape and values on any device,
    mappings and sequences in their order, functions by name, defaults and closure. For the user's
    own classes and functions the source files count too, with the user's own files that they
    import: a victim with another `forward` is another victim. The behaviour of gifd's own code is
    covered by `source()`, that of PyTorch, NumPy and Python by their versions.

    Each object is hashed once and the hash is cached as long as the object lives, so a network's
    weights are not hashed again for every trial. Do not modify an object between two calls.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[object], bytes]] = {}
        self._types: dict[type, bytes] = {}
        self._sources: dict[str, bytes] = {}
        self._open: list[int] = []  # objects being hashed, from the outermost
        self._above = math.inf  # index of the outermost of them that was met again

    def __call__(self, value: object) -> str:
        """32 hexadecimal digits.

        Raises:
            InputError: something in it cannot be hashed by value.
        """
        return self._of(value).hex()[:32]

    def _of(self, value: object) -> bytes:
        if value is None or isinstance(value, bool | int | str | bytes | float | complex):
            return _plain(value)
        known = self._known.get(id(value))
        if known is not None and known[0]() is value:
            return known[1]
        depth = len(self._open)
        if id(value) in self._open:  # a cycle: hash how far up it leads
            place = self._open.index(id(value))
            self._above = min(self._above, place)
            return _hash("above", _plain(depth - place))
        self._open.append(id(value))
        try:
            found = self._held(value)
        finally:
            self._open.pop()
        if self._above < depth:  # depends on the objects around it: do not cache
            return found
        self._above = math.inf
        with suppress(TypeError):  # no weak references, e.g. to a list: do not cache
            self._known[id(value)] = (weakref.ref(value), found)
        return found

    def _held(self, value: object) -> bytes:
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, Enum):
            return _hash("enum", self._type(type(value)), _plain(value.name))
        if isinstance(value, PurePath | torch.dtype | torch.device | torch.Size):
            return _hash("plain", _plain(type(value).__qualname__), _plain(str(value)))
        if isinstance(value, torch.Generator):
            return _hash("generator", _tensor(value.get_state()))
        if isinstance(value, type):
            return self._type(value)
        if isinstance(value, ModuleType):
            return _hash("module", _plain(value.__name__), self._files(value.__name__))
        if isinstance(value, MethodType):
            return _hash("method", self._of(value.__func__), self._of(value.__self__))
        if callable(value) and isinstance(inspect.unwrap(value), FunctionType):
            return self._function(inspect.unwrap(value))
        if isinstance(value, BuiltinFunctionType):
            return _hash("builtin", _plain(f"{value.__module__}.{value.__qualname__}"))
        if type(value) in (set, frozenset):
            assert isinstance(value, set | frozenset)
            return _hash("set", *sorted(self._of(item) for item in value))
        if type(value) in (list, tuple):
            assert isinstance(value, list | tuple)
            return _hash(type(value).__name__, *map(self._of, value))
        if isinstance(value, MappingProxyType) or type(value) in (dict, OrderedDict):
            assert isinstance(value, MappingProxyType | dict)
            return _hash("mapping", *self._pairs(value.items()))
        own = self._type(type(value))
        if is_dataclass(value):
            known = (f.name for f in fields(value) if f.init or not f.name.startswith("_"))
            held = ((name, getattr(value, name)) for name in known)  # without caches
            return _hash("dataclass", own, *self._pairs(held))
        try:
            reduced = value.__reduce_ex__(4)  # as in pickle and copy
        except Exception:
            raise InputError(
                "expected settings that can be hashed by their content, got a "
                f"{type(value).__module__}.{type(value).__qualname__}: leave it out"
            ) from None
        if isinstance(reduced, str):
            return _hash("global", own, _plain(reduced))
        iterators = (3, 4)  # items of a sequence and of a mapping
        parts = [list(p) if i in iterators and p else p for i, p in enumerate(reduced)]
        return _hash("object", own, *map(self._of, parts))

    def _pairs(self, items: Iterable[tuple[object, object]]) -> list[bytes]:
        return [self._of(part) for pair in items for part in pair]

    def _type(self, kind: type) -> bytes:
        if kind not in self._types:
            self._types[kind] = self._lineage(kind)
        return self._types[kind]

    def _lineage(self, kind: type) -> bytes:
        names = [f"{k.__module__}.{k.__qualname__}" for k in kind.__mro__]
        sources = dict.fromkeys(k.__module__ for k in kind.__mro__)
        return _hash("type", *map(_plain, names), *map(self._files, sources))

    def _function(self, function: FunctionType) -> bytes:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        parts = [function.__defaults__, function.__kwdefaults__, cells]
        name = _plain(f"{function.__module__}.{function.__qualname__}")
        code = b"" if _versioned(function.__module__) else self._code(function.__code__)
        return _hash(
            "function", name, code, self._files(function.__module__), *map(self._of, parts)
        )

    def _code(self, code: CodeType) -> bytes:
        constants = [self._code(c) if isinstance(c, CodeType) else c for c in code.co_consts]
        return _hash("code", code.co_code, *map(self._of, (constants, list(code.co_names))))

    def _files(self, module: str) -> bytes:
        """Hash of a module's file and the user's own files that it imports; empty if versioned."""
        if _versioned(module):
            return b""
        if module not in self._sources:
            found: dict[str, bytes] = {}
            _collect(module, found)
            parts = (part for name in sorted(found) for part in (_plain(name), found[name]))
            self._sources[module] = _hash("files", *parts)
        return self._sources[module]


@cache
def source(package: Path = PACKAGE) -> str:
    """The digest of the package's source files, except those that only show results."""
    shown = {"cli", "report", "terminal.py", "__main__.py"}
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in shown:
            found += [_plain(name.as_posix()), path.read_bytes()]
    return _hash("source", *found).hex()[:32]


def _collect(module: str, found: dict[str, bytes]) -> None:
    """Add the file of an unversioned module, and those of the modules that it imports."""
    if module in found or _versioned(module):
        return
    loaded = sys.modules.get(module)
    file = Path(getattr(loaded, "__file__", None) or "")
    found[module] = file.read_bytes() if file.is_file() else b""
    if loaded is None or any(file.is_relative_to(root) for root in _INSTALLED):
        return
    for value in list(vars(loaded).values()):
        if isinstance(value, ModuleType):
            _collect(value.__name__, found)
        elif isinstance(value, type | FunctionType):
            _collect(value.__module__, found)


_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})


def _versioned(module: str) -> bool:
    """Whether the versions in a key determine its behaviour."""
    top = module.partition(".")[0]
    known = sys.stdlib_module_names | {"gifd", "torch", "numpy"}
    return top in known - {"__main__"}


def _tensor(tensor: Tensor) -> bytes:
    """Hash of dtype, shape, `requires_grad` and values, whatever the device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    what = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}"
    return _hash("tensor", what.encode(), flat.view(torch.uint8).numpy().data)


def _plain(value: object) -> bytes:
    if isinstance(value, float):
        return _hash("float", struct.pack("<d", value))
    if isinstance(value, bytes):
        return _hash("bytes", value)
    return _hash(type(value).__name__, repr(value).encode())


def _hash(kind: str, *parts: bytes | memoryview) -> bytes:
    """Hash of the parts, each after its length, so that different lists give different bytes."""
    whole = hashlib.sha256(f"{kind} {len(parts)}".encode())
    for part in parts:
        whole.update(struct.pack("<q", len(part)))
        whole.update(part)
    return whole.digest()
