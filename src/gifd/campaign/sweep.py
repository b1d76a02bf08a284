"""Sweep: many results in one file, each under a key of all settings that determine it.

A sweep plans trials, computes the key of each, and runs those whose keys are not in its file. It
prints the results of the present plan only; rows of other settings in the file are left alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from gifd.campaign.digest import Digester, source
from gifd.campaign.planned import lots, run_together
from gifd.campaign.record import Record
from gifd.campaign.trial import Trial
from gifd.campaign.utility import Federation
from gifd.errors import GifdError, InputError, NotBegunError, one_line
from gifd.federation.defenses import DPSGD, Defense
from gifd.search import Callback

Row = Mapping[str, object]


# -- seeds -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The seeds of one client of a sweep.

    Args:
        victim: for the weights of its model, as `gifd attack --victim-seed`.
        trial: for the attack's start and its defences, as `gifd attack --seed`.
    """

    victim: int
    trial: int


def seeds_of(index: int, *, seed: int, victim_seed: int = 0) -> Seeds:
    """The seeds of client number `index`, from 0.

    Each client has its own seeds, so that an interval over clients covers victims, starts and
    noise as well as images. They are the same for all attacks and defences, so that differences
    are paired. NumPy's `SeedSequence` spreads (seed, index) over 32 bits, so that sweeps with
    consecutive seeds do not share clients.
    """
    return Seeds(victim=_spread(victim_seed, index, 0), trial=_spread(seed, index, 1))


def _spread(seed: int, index: int, stream: int) -> int:
    if seed < 0:
        raise InputError(f"expected a seed of at least 0, got {seed}")
    return int(np.random.SeedSequence((seed, index, stream)).generate_state(1)[0])


def drawn(defenses: Sequence[Defense], seed: int) -> tuple[Defense, ...]:
    """The defences for one client, with random settings (ATS) drawn from the seed."""
    return tuple(defense.drawn(seed) for defense in defenses)


def covered(victims: int) -> str:
    """A sentence on what an interval over clients covers, for this number of victims."""
    if victims > 1:
        return "Each n has its own victim, start and noise: intervals cover them too."
    return "Each n has its own start and noise, all share one victim: intervals hold for it."


# -- keys ------------------------------------------------------------------------------


class Keys:
    """Keys of results: SHA-256 over all settings that determine them (see `Digester`).

    For a trial: the images and labels; the client, i.e. the model (parameters and buffers by
    value, normalisation, loss, code), protocol, grants, defences and their seed; the attacker; the
    attack with all its settings, the weights of its prior and its label mapping; the metrics; the
    attack's seed. The names of image files and of the victim do not count.

    For a federation: its model, images, labels, defences, rounds, clients, batches and seed. It
    is a result of its own, which several attackers share.

    For both: gifd's version and source, the versions of PyTorch and of the libraries that search
    or score, the kind of device and the number of threads. The last two change rounding, which
    hundreds of steps can amplify, and the seconds. The processor does not count, so parts of a
    sweep can run on several machines.
    """

    def __init__(self) -> None:
        self._digest = Digester()

    def of(self, value: object) -> str:
        """The key of a single setting, e.g. a model: equal for equal values."""
        return self._digest(value)

    def trial(self, trial: Trial) -> str:
        """The key of a trial's result."""
        apart = ("names", "victim", "metrics")
        decided = {f.name: getattr(trial, f.name) for f in fields(trial) if f.name not in apart}
        offline = "offline"  # the source of a metric's weights does not count
        metrics = [
            (type(metric), {n: v for n, v in vars(metric).items() if n != offline})
            for metric in trial.metrics
        ]
        libraries = ["scikit-image", "cma"]
        libraries += ["lpips"] if any(metric.name == "lpips" for metric in trial.metrics) else []
        where = _environment(trial.client.model.device, libraries)
        return self._digest(("trial", decided, metrics, where))

    def federation(self, federation: Federation) -> str:
        """The key of a federation's result."""
        decided = {f.name: getattr(federation, f.name) for f in fields(federation)}
        decided["data"] = (federation.data.images, federation.data.labels)
        spends = any(isinstance(defense, DPSGD) for defense in federation.defenses)
        where = _environment(federation.model.device, ["opacus"] if spends else [])
        return self._digest(("federation", decided, where))


def _environment(device: torch.device, libraries: Sequence[str]) -> dict[str, object]:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {name: _version(name) for name in ("gifd", "torch", "numpy", "scipy", *libraries)}
    return {
        "source": source(),
        "device": kind,
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        **versions,
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- results ---------------------------------------------------------------------------


def finished(trial: Trial, callback: Callback | None = None) -> Record:
    """The record of a complete run.

    Raises:
        GifdError: an error of the client or the attack.
        KeyboardInterrupt: Ctrl-C ended it; a partial result is not recorded.
    """
    ((_, record),) = finished_together([trial], callback)
    assert isinstance(record, Record)  # no error is expected
    return record


def finished_together(
    trials: Sequence[Trial],
    callback: Callback | None = None,
    expected: tuple[type[GifdError], ...] = (),
) -> Iterator[tuple[Trial, Record | GifdError]]:
    """The records of the trials that ran completely; then the first error is raised.

    Args:
        trials: of one attack.
        callback: told of the whole.
        expected: errors that are an answer, and are returned in place of the record.

    Raises:
        GifdError: an error of a client or the attack.
        KeyboardInterrupt: Ctrl-C ended one of them.
    """
    errors: list[GifdError] = []
    interrupted = False
    for trial, outcome in zip(trials, run_together(trials, callback), strict=True):
        if isinstance(outcome, NotBegunError):
            interrupted = True
        elif isinstance(outcome, expected):
            yield trial, outcome
        elif isinstance(outcome, GifdError):
            errors.append(outcome)
        elif outcome.record.interrupted:
            interrupted = True
        else:
            yield trial, outcome.record
    if interrupted:
        raise KeyboardInterrupt
    if errors:
        raise errors[0]


def answered(
    trials: Sequence[Trial],
    results: Results,
    keys: Keys,
    *,
    cell: Row,
    columns: Collection[str],
    what: str,
    told: Callable[[str], AbstractContextManager[Callback]],
    expected: tuple[type[GifdError], ...] = (),
) -> list[Row]:
    """The rows of these trials; those that `results` does not hold are run and added.

    Args:
        trials: in any order.
        results: of this sweep.
        keys: likewise.
        cell: what else a row says.
        columns: of the record. A row of an expected error has `refused` in their place.
        what: the title of their progress.
        told: a title -> the progress of a lot.
        expected: errors that are an answer.

    Raises:
        GifdError: another error of a client or an attack.
    """
    asked = {keys.trial(trial): trial for trial in trials}
    missing = {id(trial): key for key, trial in asked.items() if key not in results}
    for lot in lots(trial for trial in asked.values() if id(trial) in missing):
        with told(f"{what}: {lot[0].name}") as callback:
            for trial, found in finished_together(lot, callback, expected):
                if isinstance(found, GifdError):
                    row: Row = {"attack": trial.attack.name, "refused": str(found)}
                else:
                    row = found.model_dump(include=set(columns))
                results.add(missing[id(trial)], {**cell, **row})
    return [results[key] for key in asked]


class Results:
    """The rows of a JSON Lines file by their keys; new rows are appended immediately.

    Several processes may append to one file. An incomplete line, left by a kill, is ignored and
    computed again.

    Args:
        path: the file; it need not exist.

    Raises:
        InputError: it cannot be read, or contains other lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        try:
            text = path.read_bytes().decode("utf-8") if path.exists() else ""
        except (OSError, ValueError) as error:  # ValueError: invalid UTF-8 or path
            raise InputError(f"expected results in '{path}', got: {one_line(error)}") from None
        for number, line in enumerate(text.split("\n"), start=1):
            row = _row(line, f"line {number} of '{path}'")
            if row is not None:
                self._rows[str(row["key"])] = row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Row:
        return self._rows[key]

    def add(self, key: str, row: Row) -> None:
        """Append a row under its key.

        Raises:
            InputError: the file cannot be written.
        """
        line = json.dumps({"key": key, **row}, allow_nan=False).encode("ascii") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line)
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise InputError(f"expected to write to '{self.path}', got: {reason}") from None
        self._rows[key] = dict(row)


_BEGINNING = '{"key": "'


def _row(line: str, where: str) -> Row | None:
    """The row of a line; None for an empty or incomplete one."""
    try:
        row = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        if line.startswith(_BEGINNING) or _BEGINNING.startswith(line):
            return None
        reason = one_line(error)
        raise InputError(f"expected results in JSON Lines, got {where}: {reason}") from None
    if row is not None and not (isinstance(row, dict) and isinstance(row.get("key"), str)):
        raise InputError(
            f"expected results with keys of their settings, got {where} without one (from an "
            "older version): name another --out"
        )
    return row


def number(row: Row, name: str) -> float:
    """A number in a row.

    Raises:
        InputError: it is not a finite number.
    """
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(found := float(value)):
                return found
    raise InputError(f"expected a number for '{name}' to average, got {one_line(repr(value), 40)}")
