"""Names: which tensor of a model a foreign name means."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from gifd.errors import UpdateError, one_line

T = TypeVar("T")

_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_module)\.")
"""What `torch.compile` and Opacus add to a name, at any place."""


def renamed(given: Mapping[str, T], known: Collection[str]) -> tuple[dict[str, T], str]:
    """The tensors under the model's names, as far as a common prefix hides them.

    Parts that `torch.compile` and Opacus insert are removed. Then the prefix that all names have
    (`module.` of a parallel module, `state_dict.` of a checkpoint, any other) is removed, or one
    that all names of the model have is added, if more names are known afterwards.

    Returns:
        the tensors, and what was changed in their names; empty if nothing was.

    Raises:
        UpdateError: two tensors get the same name.
    """
    bare = {name: _WRAPPERS.sub("", name) for name in given}
    best, told = bare, _removed(bare)
    most = sum(name in known for name in bare.values())
    for prefix in _prefixes(list(bare.values())):
        tried = {name: own.removeprefix(prefix) for name, own in bare.items()}
        found = sum(name in known for name in tried.values())
        if found > most:
            best, most = tried, found
            told = _joined(_removed(bare), f"the prefix '{one_line(prefix, 40)}' was removed")
    for prefix in _prefixes(list(known)):
        tried = {name: prefix + own for name, own in bare.items()}
        found = sum(name in known for name in tried.values())
        if found > most:
            best, most = tried, found
            told = _joined(_removed(bare), f"the prefix '{one_line(prefix, 40)}' was added")
    seen: dict[str, T] = {}
    for name, own in best.items():
        if own in seen:
            raise UpdateError(
                f"expected each tensor once, got two for '{one_line(own, 80)}': remove one"
            )
        seen[own] = given[name]
    return seen, told


def nearest(name: str, known: Iterable[str]) -> str:
    """' (the nearest is ...)', or nothing if no known name is similar."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (the nearest is '{one_line(close[0], 60)}')" if close else ""


def _prefixes(names: Sequence[str]) -> list[str]:
    """The prefixes, ending in a dot, that all names share; the shortest first."""
    if not names:
        return []
    parts = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for place in range(min(len(part) for part in parts)):
        found = {part[place] for part in parts}
        if len(found) > 1:
            break
        shared.append(found.pop())
    return [".".join(shared[: length + 1]) + "." for length in range(len(shared))]


def _removed(bare: Mapping[str, str]) -> str:
    parts = sorted({part for name, own in bare.items() if own != name for part in _parts(name)})
    return f"{' and '.join(parts)} in the names was removed" if parts else ""


def _parts(name: str) -> list[str]:
    return [f"'{part}'" for part in _WRAPPERS.findall(name)]


def _joined(*parts: str) -> str:
    return ", and ".join(part for part in parts if part)
