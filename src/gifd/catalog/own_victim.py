"""A user's own victim: the factory in a package, or in a Python file, that makes it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from gifd.errors import GifdError, InputError, one_line


def is_own(name: str) -> bool:
    """Whether a victim's name is that of a factory, not of one in the catalogue."""
    return ":" in name or name.endswith(".py")


def made_by(name: str) -> object:
    """What a factory returns: `package.module:factory`, or `path/to/file.py:factory`.

    Modules are looked for in the current folder too, and a file's own imports in its folder.

    Raises:
        InputError: it cannot be imported or called.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise InputError(
            "expected a victim as 'package.module:factory' or 'path/to/file.py:factory', got "
            f"'{name}': name the factory"
        )
    factory = getattr(_imported(place, name), attribute, None)
    if factory is None:
        raise InputError(
            f"expected '{attribute}' in '{place}', got none: name one of its functions"
        )
    return _called(factory, name)


def _imported(place: str, name: str) -> ModuleType:
    wanted = "expected an importable victim 'package.module:factory' or 'path/to/file.py:factory'"
    path = Path(place)
    is_file = place.endswith(".py")
    if is_file and not path.is_file():
        raise InputError(f"{wanted}, got '{name}': there is no file '{place}'")
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _executed(path) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise InputError(f"{wanted}, got '{name}': {_told(error)}") from None


def _executed(path: Path) -> ModuleType:
    """The module of a file, under a name of its own, once."""
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"gifd_victim_{path.stem}_{unique}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _called(factory: Any, name: str) -> object:
    try:
        return factory()
    except GifdError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"expected '{name}()' to return a victim, it raised {_told(error)}"
        ) from None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
