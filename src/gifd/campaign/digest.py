"""Digest: a value told by what it holds, so that two processes know equal settings as one."""

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
    """SHA-256 of anything a setting is made of: numbers, tensors, networks, dataclasses, functions.

    An object counts by its class and by all that it holds: tensors by their type, shape and
    values wherever they live, mappings and sequences in their order, functions by their name,
    defaults and closure. Of a user's own classes and functions the source files count too, with
    the user's own files that these import: a victim with another `forward` is another victim.
    What ours do is told by `source()`, and what PyTorch, NumPy and Python do by their versions.

    Each object is looked at once and then remembered as long as it lives: a network's weights
    are not hashed again for every trial. So nothing may be changed between two questions.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[object], bytes]] = {}
        self._types: dict[type, bytes] = {}
        self._sources: dict[str, bytes] = {}
        self._open: list[int] = []  # what is being looked at, from the outermost
        self._above = math.inf  # the outermost of them that was met again

    def __call__(self, value: object) -> str:
        """32 hexadecimal digits.

        Raises:
            InputError: something in it cannot be told by value.
        """
        return self._of(value).hex()[:32]

    def _of(self, value: object) -> bytes:
        if value is None or isinstance(value, bool | int | str | bytes | float | complex):
            return _plain(value)
        known = self._known.get(id(value))
        if known is not None and known[0]() is value:
            return known[1]
        depth = len(self._open)
        if id(value) in self._open:  # it holds itself: how far up says where
            place = self._open.index(id(value))
            self._above = min(self._above, place)
            return _hash("above", _plain(depth - place))
        self._open.append(id(value))
        try:
            found = self._held(value)
        finally:
            self._open.pop()
        if self._above < depth:  # told by what is around it: true of it here only
            return found
        self._above = math.inf
        with suppress(TypeError):  # no weak reference to it, as to a list: it is looked at again
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
            held = ((field.name, getattr(value, field.name)) for field in fields(value))
            return _hash("dataclass", own, *self._pairs(held))
        try:
            reduced = value.__reduce_ex__(4)  # as pickle and copy take an object apart
        except Exception:
            raise InputError(
                "expected settings that can be told by what they hold, got a "
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
        """Of a module's file and of the user's own it imports; nothing where a version tells."""
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
    """The digest of the package's own source files, but for the rooms that show results only."""
    shown = {"cli", "report", "terminal.py", "__main__.py"}
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in shown:
            found += [_plain(name.as_posix()), path.read_bytes()]
    return _hash("source", *found).hex()[:32]


def _collect(module: str, found: dict[str, bytes]) -> None:
    """Add the file of a module that no version tells, and those of the modules it imports."""
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
    """Whether the versions in a key say what it does."""
    top = module.partition(".")[0]
    known = sys.stdlib_module_names | {"gifd", "torch", "numpy"}
    return top in known - {"__main__"}


def _tensor(tensor: Tensor) -> bytes:
    """Its numbers in place of where they live; with whether they are trained."""
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
    """Of parts each behind its length, so that no two lists of parts are one text."""
    whole = hashlib.sha256(f"{kind} {len(parts)}".encode())
    for part in parts:
        whole.update(struct.pack("<q", len(part)))
        whole.update(part)
    return whole.digest()
