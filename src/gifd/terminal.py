"""Terminal output for people: progress bar, tables, and one line per error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import signature
from typing import ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from gifd.bars import shown
from gifd.campaign.record import Record
from gifd.errors import (
    GRANT_LABELS,
    LONGEST,
    NAME_ATTACKER,
    NAME_CLIENT,
    NAME_HIDDEN,
    GifdError,
    one_line,
)
from gifd.report.said import said
from gifd.report.strip import decibel, defended_by
from gifd.search import Callback, Progress
from gifd.training import Stand

P = ParamSpec("P")

say = Console(
    stderr=True,
    highlight=False,
    markup=False,  # a file's name may look like it
    emoji=False,
    width=None if sys.stderr.isatty() else 120,
)
"""Text for people goes to stderr; stdout is for results that programs read."""


def tell(text: str) -> None:
    """Print one line about a result on stdout; control characters are escaped."""
    Console(highlight=False, markup=False, emoji=False).print(
        one_line(text, LONGEST), soft_wrap=True
    )


@contextmanager
def progress(title: str) -> Iterator[Callback]:
    """Progress of a search: phase, restarts, least distance, time left."""
    with shown(say, title) as update:

        def callback(now: Progress) -> None:
            several = f" · {now.restarts} restarts" if now.restarts > 1 else ""
            words = f"{now.phase} {now.step}/{now.steps}{several} · distance {now.distance:.4f}"
            if now.doing:
                words = f"{now.phase}{several} · {now.doing}"
            update(words, now.evaluations, now.evaluations_planned, None)

        yield callback


@contextmanager
def training(title: str) -> Iterator[Callable[[Stand], None]]:
    """Progress of a prior's training: images, images per second, losses, time left."""
    with shown(say, title) as update:

        def callback(now: Stand) -> None:
            words = (
                f"{now.seen:,} images · {now.rate:.0f} a second · "
                f"G {now.losses.generator:.2f} D {now.losses.discriminator:.2f} p {now.p:.2f}"
            )
            update(words, now.seen, now.images, now.left)

        yield callback


@contextmanager
def steps(
    title: str, total: int, reason: str = "", what: str = "loss"
) -> Iterator[Callable[[int, float], None]]:
    """Progress of `total` steps: loss or another number, time left; a note before the first."""
    with shown(say, title, transient=True) as update:

        def callback(step: int, value: float) -> None:
            if reason and step == 0:
                note(reason)
            update(f"{step + 1}/{total} · {what} {value:.3f}", step + 1, total, None)

        yield callback


def results(records: Sequence[Record]) -> None:
    """Print one row per trial on stderr."""
    defended = any(record.defenses for record in records)
    own = sorted({name for record in records for name in record.own_metrics})
    rows = [
        (
            record.image,
            *([defended_by(record) or "none"] if defended else []),
            f"{record.attack} ({record.preset})",
            decibel(record.psnr) if record.truth else "-",
            *(
                "-" if value is None else f"{value:.{digits}f}"
                for value, digits in (
                    (record.ssim, 3),
                    (record.mse, 4),
                    (record.stlpips, 3),
                    *((record.own_metrics.get(name), 3) for name in own),
                    (record.distance, 5),
                )
            ),
            str(record.evaluations),
            f"{record.seconds:.{0 if record.seconds >= 10 else 1}f}",
        )
        for record in records
    ]
    heads = (
        "image",
        *(["defences"] if defended else []),
        "attack",
        "PSNR",
        "SSIM",
        "MSE",
        "ST-LPIPS",
        *own,
        "distance",
        "evaluations",
        "seconds",
    )
    table("", heads, rows, console=say)
    for record in records:
        for name, text in said(record):
            if name in ("matching distance", "restarts agree to"):
                note(f"{record.attack}: {name}: {text}")


def table(
    title: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    console: Console | None = None,
) -> None:
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for head in heads:
        grid.add_column(head, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console = console or Console(markup=False, emoji=False)
    console.print(grid)
    console.print()


def note(text: str) -> None:
    """Print a note in one line; nothing is wrong."""
    say.print(f"note: {in_shell(' '.join(text.split()))}", soft_wrap=True, markup=False)


def complain(error: GifdError) -> None:
    """Print a user's error in one line."""
    say.print(f"error: {in_shell(str(error))}", soft_wrap=True)


def in_shell(text: str) -> str:
    """With the running command's options in place of remedies in Python."""
    for remedy, names in _OPTIONS.items():
        own = [name for name in names if name in _PARAMETERS.get()]
        if own:
            value = " hide:parts=..." if remedy == NAME_HIDDEN else ""
            text = text.replace(remedy, f"give --{own[0].replace('_', '-')}{value}")
    return text


_OPTIONS: Mapping[str, Sequence[str]] = {
    GRANT_LABELS: ("grant_labels", "label"),
    NAME_ATTACKER: ("attacker", "defense"),
    NAME_CLIENT: ("client",),
    NAME_HIDDEN: ("defense",),
}
_PARAMETERS: ContextVar[frozenset[str]] = ContextVar("parameters", default=frozenset())
"""Of the running command."""


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a user's error into one line on stderr and exit code 2, Ctrl-C into exit code 130."""
    parameters = frozenset(signature(command).parameters)

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        token = _PARAMETERS.set(parameters)
        try:
            command(*args, **kwargs)
        except GifdError as error:
            complain(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        finally:
            _PARAMETERS.reset(token)

    return guarded
