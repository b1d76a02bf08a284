"""What people see in a terminal: the progress bar, tables, and one line for each mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from gifd.campaign.record import Record
from gifd.errors import GifdError
from gifd.inversion import Callback, Progress
from gifd.report.strip import behind, decibel
from gifd.training import Stand

P = ParamSpec("P")

say = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
"""People read stderr; stdout is for results that programs read."""


@contextmanager
def progress(title: str) -> Iterator[Callback]:
    """A live bar on stderr: phase, restarts, least distance, time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=say, transient=not say.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def callback(now: Progress) -> None:
            text = (
                f"{title} · {now.phase} {now.step}/{now.steps} · "
                f"{now.restarts} restart{'s' if now.restarts > 1 else ''} · "
                f"distance {now.distance:.4f}"
            )
            bar.update(
                task, description=text, completed=now.evaluations, total=now.evaluations_planned
            )

        yield callback


@contextmanager
def training(title: str) -> Iterator[Callable[[Stand], None]]:
    """A live bar on stderr: images, images a second, time left, losses."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Bar(*columns, console=say, transient=not say.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def callback(now: Stand) -> None:
            left = timedelta(seconds=round(now.left))
            text = (
                f"{title} · {now.seen:,} images · {now.rate:.0f} a second · {left} left · "
                f"G {now.losses.generator:.2f} D {now.losses.discriminator:.2f} p {now.p:.2f}"
            )
            bar.update(task, description=text, completed=now.seen, total=now.images)

        yield callback


@contextmanager
def steps(title: str, total: int, reason: str = "") -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr, and a note, that are not there before the first step: loss, time left."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn())
    with Bar(*columns, console=say, transient=True, disable=not say.is_terminal) as bar:
        task = bar.add_task(title, total=total, visible=False)

        def callback(step: int, loss: float) -> None:
            if reason and step == 0:
                note(reason)
            text = f"{title} · {step + 1}/{total} · loss {loss:.3f}"
            bar.update(task, description=text, completed=step + 1, visible=True)

        yield callback


def results(records: Sequence[Record]) -> None:
    """A row a trial, on stderr."""
    defended = any(record.defenses for record in records)
    rows = [
        (
            record.image,
            *([behind(record) or "none"] if defended else []),
            f"{record.attack} ({record.preset})",
            decibel(record.psnr),
            *(
                "-" if value is None else f"{value:.{digits}f}"
                for value, digits in (
                    (record.ssim, 3),
                    (record.mse, 4),
                    (record.stlpips, 3),
                    (record.distance, 5),
                )
            ),
            str(record.evaluations),
            f"{record.seconds:.0f}",
        )
        for record in records
    ]
    heads = (
        "image",
        *(["behind"] if defended else []),
        "attack",
        "PSNR",
        "SSIM",
        "MSE",
        "ST-LPIPS",
        "distance",
        "evaluations",
        "seconds",
    )
    table("", heads, rows, console=say)


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
    console = console or Console()
    console.print(grid)
    console.print()


def note(text: str) -> None:
    """What a user may want to know, in one line; nothing is wrong."""
    say.print(f"note: {' '.join(text.split())}", soft_wrap=True, markup=False)


def complain(error: GifdError) -> None:
    """A user's mistake in one line."""
    say.print(f"error: {' '.join(str(error).split())}", soft_wrap=True, markup=False)


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a user's mistake into one line on stderr and exit code 2; Ctrl-C into 130."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except GifdError as error:
            complain(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return guarded
