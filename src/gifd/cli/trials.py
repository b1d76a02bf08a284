"""Trials on the command line: run, store and report them, with one line per error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import typer

from gifd import terminal
from gifd.campaign.record import Record
from gifd.campaign.store import Store
from gifd.campaign.trial import Trial
from gifd.errors import LONGEST, GifdError, one_line
from gifd.report import write_report


def run_trials(
    prepared: Iterable[Callable[[], Iterable[Trial]]], store: Store, *, json: bool
) -> None:
    """Run the trials; an error ends only the trials of its own images."""
    records: list[Record] = []
    failed = interrupted = False
    for prepare in prepared:
        try:
            for trial in prepare():
                with terminal.progress(f"{trial.name}: {trial.attack.name}") as callback:
                    outcome = trial.run(callback)
                stored = store.add(outcome)
                records.append(stored.record)
                if json:
                    sys.stdout.write(stored.record.model_dump_json() + "\n")
                    sys.stdout.flush()
                if stored.record.dropped:
                    terminal.note(f"restarts {stored.record.dropped} became non-finite, dropped")
                interrupted = stored.record.interrupted
                if interrupted:
                    break
        except GifdError as error:
            terminal.complain(error)
            failed = True
        except KeyboardInterrupt:
            interrupted = True
        if interrupted:
            terminal.say.print("interrupted: the results so far are kept")
            break
    if records:
        terminal.results(records)
        terminal.say.print(f"report: {one_line(write_report(store), LONGEST)}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(2)
