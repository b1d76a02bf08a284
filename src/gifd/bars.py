"""Bars: the progress of a long computation, as a bar in a terminal and as lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

Update = Callable[[str, float, float, float | None], None]
"""Called with a few words, the amount done, the total, and the seconds left (None: estimated)."""

WIDE = 110
"""Columns of a terminal from which the bar is long."""

OFTEN, SELDOM = 5.0, 60.0
"""Seconds between two lines: at each tenth, but at least `OFTEN`; always after `SELDOM`."""

Clock = Callable[[], float]


@contextmanager
def shown(
    console: Console, title: str, *, transient: bool = False, clock: Clock = time.monotonic
) -> Iterator[Update]:
    """A bar, or lines, with the time left; nothing is shown before the first update.

    Args:
        console: the output; a bar if it is a terminal, else lines.
        title: what is computed.
        transient: whether the bar disappears at the end.
        clock: in seconds.
    """
    began = clock()

    def told_left(done: float, total: float, seconds: float | None) -> str:
        if seconds is None:
            seconds = (clock() - began) * (total - done) / done if done > 0 else 0.0
        return str(timedelta(seconds=round(max(seconds, 0.0))))

    if console.is_terminal:
        with _bar(console, transient) as draw:
            yield lambda words, done, total, seconds: draw(
                title, words, done, total, told_left(done, total, seconds)
            )
        return
    told, tenths = began, 0

    def line(words: str, done: float, total: float, seconds: float | None) -> None:
        nonlocal told, tenths
        share, since = done / total if total else 0.0, clock() - told
        if since < OFTEN or (int(10 * share) == tenths and since < SELDOM):
            return
        told, tenths = clock(), int(10 * share)
        text = f"{title} · {words} · {share:.0%} · {told_left(done, total, seconds)} left"
        console.print(text, soft_wrap=True, markup=False)

    yield line


@contextmanager
def _bar(
    console: Console, transient: bool
) -> Iterator[Callable[[str, str, float, float, str], None]]:
    """If space is short, the title is cut first, then the words, never bar, share and time."""
    length = 24 if console.width >= WIDE else 6
    described = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("{task.description}", table_column=described, markup=False),
        BarColumn(bar_width=length),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=console, transient=transient, expand=True) as bar:
        task = bar.add_task("", total=None, visible=False, left="")

        def draw(title: str, words: str, done: float, total: float, left: str) -> None:
            room = console.width - length - len(left) - len(words) - len(" ·  100 %  ") - 1
            name = title if len(title) <= room else f"{title[: max(room, 6)]}…"
            bar.update(
                task,
                description=f"{name} · {words}",
                completed=done,
                total=total,
                left=left,
                visible=True,
            )

        yield draw
