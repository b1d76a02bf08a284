"""Trials on the command line: run, store and report them, with one line per error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from gifd import terminal
from gifd.campaign.planned import Planned, lots, run_together
from gifd.campaign.record import Outcome, Record
from gifd.campaign.store import Store
from gifd.errors import LONGEST, GifdError, NotBegunError, one_line
from gifd.report import write_report


def run_trials(
    prepared: Iterable[Callable[[], Iterable[Planned[Any]]]],
    store: Store,
    *,
    json: bool,
    expected: tuple[type[GifdError], ...] = (),
) -> None:
    """Run the trials; an error ends only the trials of its own images.

    Errors of the `expected` types are notes as long as another trial succeeds.
    """
    records: list[Record] = []
    told: set[tuple[str, str]] = set()
    noted = interrupted = False

    def refuse(name: str, error: GifdError) -> None:
        """Say it once, however many attacks it concerns."""
        nonlocal noted
        if isinstance(error, expected):
            noted = True
            terminal.note(str(error))
            return
        if (name, str(error)) not in told:
            terminal.complain(error)
        told.add((name, str(error)))

    def trials() -> Iterator[Planned[Any]]:
        for number, prepare in enumerate(prepared):
            try:
                yield from prepare()
            except GifdError as error:
                refuse(str(number), error)

    try:
        for lot in lots(trials()):
            for trial, outcome in zip(lot, _run(lot, store.folder / "unfinished"), strict=True):
                if isinstance(outcome, NotBegunError):
                    continue
                if isinstance(outcome, GifdError):
                    refuse(trial.name, outcome)
                    continue
                try:
                    stored = store.add(outcome)
                except GifdError as error:
                    refuse(trial.name, error)
                    continue
                records.append(stored.record)
                if json:
                    sys.stdout.write(stored.record.model_dump_json() + "\n")
                    sys.stdout.flush()
                if stored.record.dropped:
                    terminal.note(f"restarts {stored.record.dropped} became non-finite, dropped")
            if any(record.interrupted for record in records):
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
        kept = "what was found so far is kept" if records else "before anything was found"
        terminal.say.print(f"interrupted: {kept}")
    with suppress(OSError):  # there is none, or something is unfinished
        (store.folder / "unfinished").rmdir()
    if records:
        terminal.results(records)
        terminal.say.print(f"report: {one_line(write_report(store), LONGEST)}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if told or (noted and not records):
        raise typer.Exit(2)


def _run(lot: Sequence[Planned[Any]], unfinished: Path) -> list[Outcome | GifdError]:
    """Run these trials together, under one bar; an interrupted one goes on where it was."""
    more = f" and {len(lot) - 1} more clients" if len(lot) > 1 else ""
    with terminal.progress(f"{lot[0].name}{more}: {lot[0].attack.name}") as callback:
        return run_together(lot, callback, unfinished)
