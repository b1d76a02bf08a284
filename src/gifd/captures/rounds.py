"""Rounds: a folder with what a client received and returned in each round."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gifd.captures.capture import Capture
from gifd.captures.files import read_capture, read_weights
from gifd.captures.folder import BEFORE, CLIENT
from gifd.errors import NAME_CLIENT, UpdateError, one_line
from gifd.files import is_file, is_folder
from gifd.model import Model

_AFTER = "after"
_MOST = 8
"""Clients that an error lists."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What a client received and returned in one round.

    Args:
        before, after: names of the files, such as `round-001/before.safetensors`; `before` is empty
            if there is none.
        model: with the weights that the client received.
        capture: its update.
        notes: what was done to make the weights fit the model, a sentence each.
    """

    before: str
    after: str
    model: Model
    capture: Capture
    notes: tuple[str, ...] = ()


def read_rounds(
    folder: Path, model: Model, *, client: str | None = None, hidden: Collection[str] = ()
) -> tuple[Round, ...]:
    """All rounds of one client, in their order.

    A round is a folder inside this one, or this one itself, with `before.*`, the weights that the
    clients received, and either `client-<name>.*` for what each returned, as
    `gifd.integrations.flower.Recorded` writes them, or `after.*` of the only client. The files are
    those of `read_capture`. Rounds in which the client took no part are left out.

    Args:
        folder: of the rounds.
        model: of the federation.
        client: its name; None: the only one.
        hidden: parameters that it does not send, or sends encrypted.

    Raises:
        UpdateError: no rounds, no such client, several clients and no name, a round without its
            weights before, or a file that does not fit the model.
        WeightsError: weights before that do not fit the model.
    """
    try:
        replies = _replies(folder, client)
    except OSError as error:
        raise UpdateError(
            f"expected a folder that can be read, got '{one_line(folder, 200)}': {one_line(error)}"
        ) from None
    found = []
    for after in replies:
        alone = f"{BEFORE}-{after.stem.removeprefix(CLIENT)}"
        before = _only(after.parent, alone) or _only(after.parent, BEFORE)
        if before is None:
            raise UpdateError(
                f"expected '{one_line(after.parent, 200)}' to hold {BEFORE}.*, the weights that "
                "the client received, got none"
            )
        own, notes = read_weights(before, model, hidden=hidden)
        found.append(
            Round(
                before=_short(before, folder),
                after=_short(after, folder),
                model=own,
                capture=read_capture(after, own, hidden=hidden),
                notes=notes,
            )
        )
    return tuple(found)


def _replies(folder: Path, client: str | None) -> list[Path]:
    """The file of each round in which the client took part."""
    if not is_folder(folder):
        raise UpdateError(f"expected a folder of rounds, found none at '{one_line(folder, 200)}'")
    every = [
        (each, sorted({path.stem for path in _files(each) if _is_reply(path.stem)}))
        for each in _inside(folder)
    ]
    known = sorted({stem for _, stems in every for stem in stems}, key=_natural)
    if not known:
        raise UpdateError(
            f"expected rounds in '{one_line(folder, 200)}', folders with {BEFORE}.* and "
            f"{CLIENT}<name>.* or {_AFTER}.*, found none"
        )
    if client is None and len(known) > 1:
        raise UpdateError(
            f"expected the name of one of {len(known)} clients ({_listed(known)}), got none: "
            f"{NAME_CLIENT}"
        )
    fitting = [stem for stem in known if client is None or _is_called(stem, client)]
    if not fitting:
        raise UpdateError(
            f"expected a client of '{one_line(folder, 200)}' ({_listed(known)}), got "
            f"'{one_line(client, 60)}'"
        )
    wanted = fitting[0]
    return [
        reply
        for each, stems in every
        if wanted in stems and (reply := _only(each, wanted)) is not None
    ]


def _inside(folder: Path) -> list[Path]:
    """The folders that may be rounds: this one if it holds a round, else those inside it."""
    if any(path.stem == BEFORE or _is_reply(path.stem) for path in _files(folder)):
        return [folder]
    return sorted(
        (path for path in folder.iterdir() if is_folder(path)), key=lambda path: _natural(path.name)
    )


def _files(folder: Path) -> Iterator[Path]:
    """The files of tensors; a simulated federation lists images in JSON beside them."""
    return (p for p in folder.iterdir() if is_file(p) and p.suffix not in (".part", ".json"))


def _is_called(stem: str, client: str) -> bool:
    """Whether a client is meant, by its file's or its own name, or its number."""
    name = stem.removeprefix(CLIENT)
    same = name.isdecimal() and client.isdecimal() and int(name) == int(client)
    return same or client in (stem, name)


def _only(folder: Path, stem: str) -> Path | None:
    """The file of this name with any ending.

    Raises:
        UpdateError: there are several.
    """
    found = sorted(path for path in _files(folder) if path.stem == stem)
    if len(found) > 1:
        raise UpdateError(
            f"expected one file '{one_line(stem, 60)}' in '{one_line(folder, 200)}', got "
            f"{one_line(' and '.join(path.name for path in found), 120)}: remove one"
        )
    return found[0] if found else None


def _is_reply(stem: str) -> bool:
    return stem == _AFTER or stem.startswith(CLIENT)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which 'round-2' is before 'round-10'."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _listed(stems: Sequence[str]) -> str:
    names = ", ".join(one_line(stem.removeprefix(CLIENT), 40) for stem in stems[:_MOST])
    return names + (f" and {len(stems) - _MOST} more" if len(stems) > _MOST else "")


def _short(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
