"""Resolver: from a text on the command line to the object that it names or makes.

A text is a name of the catalogue or the user's own object, with or without options:

    name                            name:key=value,key=value
    package.module:object           package.module:object:key=value,key=value
    path/to/file.py:object          path/to/file.py:object:key=value,key=value
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast, final

from gifd.catalog.signatures import options, parameters
from gifd.errors import GifdError, InputError, one_line

T = TypeVar("T")

_FORMS = "'package.module:object' or 'path/to/file.py:object'"
_OWN = re.compile(r"(?P<place>.*?\.py(?=:|$)|[^:]*)(:(?P<thing>[^:]*))?(:(?P<rest>.*))?", re.DOTALL)
_COMMA = re.compile(r",(?=\w+=)")


@final
@dataclass(frozen=True, kw_only=True)
class Found(Generic[T]):
    """The object that a text names.

    Args:
        text: the text.
        name: the text without the options.
        thing: a class or function that makes the wanted object, or the object itself.
        kinds: types of the wanted object.
        chosen: the options, converted.
        own: whether it is the user's own.
    """

    text: str
    name: str
    thing: Callable[..., T] | T
    kinds: tuple[type, ...]
    chosen: Mapping[str, object]
    own: bool

    @property
    def ready(self) -> bool:
        """Whether `thing` is the wanted object itself."""
        return isinstance(self.thing, self.kinds)

    def takes(self, parameter: str) -> bool:
        """Whether it has a parameter of this name."""
        return not self.ready and parameter in parameters(self.thing)

    def needs(self, parameter: str) -> bool:
        """Whether it has a parameter of this name without a default."""
        return self.takes(parameter) and parameters(self.thing)[parameter].required

    def made(self, **offered: object) -> T:
        """The wanted object; made with the options and those of the offered arguments it takes.

        Raises:
            InputError: an argument is missing, the user's code fails or returns another type.
        """
        if self.ready:
            return self.thing  # type: ignore[return-value]
        arguments = {name: value for name, value in offered.items() if self.takes(name)}
        arguments |= self.chosen
        for name, parameter in parameters(self.thing).items():
            if parameter.required and name not in arguments:
                if not parameter.kinds:
                    raise InputError(
                        f"expected '{self.name}' to be called with options alone, got its "
                        f"parameter '{name}': give it a default"
                    )
                raise InputError(
                    f"expected '{self.name}:{name}=...', got '{self.text}': give {name}"
                )
        wanted = " or ".join(kind.__name__ for kind in self.kinds)
        try:
            made = cast(Callable[..., T], self.thing)(**arguments)
        except GifdError:
            raise
        except (Exception, SystemExit) as error:
            if not self.own:
                raise
            raise InputError(
                f"expected '{self.name}()' to return {wanted}, it raised {told(error)}"
            ) from None
        if not isinstance(made, self.kinds):
            raise InputError(
                f"expected '{self.name}()' to return {wanted}, got {type(made).__name__}"
            )
        return made


def resolve(
    text: str,
    table: Mapping[str, Callable[..., T]],
    what: str,
    kinds: tuple[type, ...],
    settings: Sequence[str] = (),
    also: str = "",
) -> Found[T]:
    """Find the object that a text names, and read its options.

    Args:
        text: in one of the forms above. Modules are also searched for in the current folder, and
            the imports of a file in its folder.
        table: the names of the catalogue.
        what: the kind of object, for errors: 'attack', 'defence', ...
        kinds: its types; an imported object of one of them is used as it is.
        settings: further options, each `key=value`.
        also: further valid forms of a text, for errors.

    Raises:
        InputError: an unknown name, a failed import, or wrong options.
    """
    name, written = split(text, table)
    own = name not in table
    if own and not _is_own(name):
        known = f"a known {what} ({', '.join(table)}){also} or your own" if table else f"a {what}"
        raise InputError(f"expected {known} as {_FORMS}, got '{text}'")
    thing = _imported(name, what) if own else table[name]
    written = [*written, *settings]
    if isinstance(thing, kinds):
        if written:
            raise InputError(
                f"expected no options for '{name}', a finished object, got '{written[0]}'"
            )
        chosen: dict[str, object] = {}
    elif callable(thing):
        chosen = _read(thing, name, written)
    else:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"expected '{name}' to be of type {wanted}, or to make it, got {type(thing).__name__}"
        )
    return Found(text=text, name=name, thing=thing, kinds=kinds, chosen=chosen, own=own)


def split(text: str, table: Mapping[str, object]) -> tuple[str, list[str]]:
    """The name in a text, and its options, separated by commas before a key."""
    name, _, rest = text.partition(":")
    if name not in table:
        parts = _OWN.fullmatch(text)
        assert parts is not None  # it matches every text
        name, rest = parts["place"], parts["rest"] or ""
        name += "" if parts["thing"] is None else f":{parts['thing']}"
    return name, [setting for setting in _COMMA.split(rest) if setting]


def told(error: BaseException) -> str:
    """An error in the user's code, on one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def _is_own(name: str) -> bool:
    """Whether a name looks like the user's own: with a colon, or the name of a Python file."""
    _, colon, thing = name.rpartition(":")
    return name.endswith(".py") or (bool(colon) and (not thing or thing.isidentifier()))


def _read(thing: Callable[..., object], name: str, settings: Sequence[str]) -> dict[str, object]:
    known = options(thing)
    chosen: dict[str, object] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if not known:
            raise InputError(f"expected no options for '{name}', got '{setting}'")
        if key not in known or not value or key in chosen:
            offered = ", ".join(f"{option}=..." for option in known)
            raise InputError(
                f"expected options of '{name}' ({offered}), each once, got '{setting}'"
            )
        chosen[key] = known[key].read(key, value)
    return chosen


def _imported(name: str, what: str) -> Any:
    """Import `package.module:object` or `path/to/file.py:object`."""
    place, _, attribute = ("", "", "") if name.endswith(".py") else name.rpartition(":")
    if not place or not attribute:
        raise InputError(f"expected your own {what} as {_FORMS}, got '{name}': name the object")
    thing = getattr(_module(place, name, what), attribute, None)
    if thing is None:
        raise InputError(
            f"expected '{attribute}' in '{place}', got none: name one of its functions or classes"
        )
    return thing


def _module(place: str, name: str, what: str) -> ModuleType:
    wanted = f"expected an importable {what} {_FORMS}"
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
        raise InputError(f"{wanted}, got '{name}': {told(error)}") from None


def _executed(path: Path) -> ModuleType:
    """Load a file as a module with a unique name, once."""
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"gifd_own_{path.stem}_{unique}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle need it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
