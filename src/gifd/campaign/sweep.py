"""Sweep: many results in one file, each found again by a key of all that decides it.

A sweep makes a plan of trials, asks for the key of each and computes what its file does not hold.
What is printed are the results of today's plan: rows of other settings may lie in the same file
and are neither printed nor touched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from gifd.campaign.digest import Digester, source
from gifd.campaign.record import Record
from gifd.campaign.trial import Trial, run_together
from gifd.campaign.utility import Federation
from gifd.errors import GifdError, InputError, NotBegunError, one_line
from gifd.federation.defenses import DPSGD, Defense
from gifd.search import Callback

Row = Mapping[str, object]


# -- seeds -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """What is drawn for one client of a sweep.

    Args:
        victim: of the weights of its model, as `gifd attack --victim-seed`.
        trial: of the attack's start and of its defences' draws, as `gifd attack --seed`.
    """

    victim: int
    trial: int


def seeds_of(index: int, *, seed: int, victim_seed: int = 0) -> Seeds:
    """The seeds of client number `index`, from 0: each has its own.

    An interval over clients then covers victims, starts and noise too, not the images alone. All
    attacks and defences meet client `index` with the same seeds, so that they are compared pair
    by pair. NumPy's `SeedSequence` spreads (seed, index) over 32 bits: clients of one sweep are
    not the next sweep's moved by one.
    """
    return Seeds(victim=_spread(victim_seed, index, 0), trial=_spread(seed, index, 1))


def _spread(seed: int, index: int, stream: int) -> int:
    if seed < 0:
        raise InputError(f"expected a seed of at least 0, got {seed}")
    return int(np.random.SeedSequence((seed, index, stream)).generate_state(1)[0])


def drawn(defenses: Sequence[Defense], seed: int) -> tuple[Defense, ...]:
    """The same defences for one client, where what they draw is among their settings (ATS)."""
    return tuple(defense.drawn(seed) for defense in defenses)


def covered(victims: int) -> str:
    """What an interval over clients covers, where so many victims were drawn, in a sentence."""
    if victims > 1:
        return "Victim, start and noise are drawn anew for each n: intervals cover them too."
    return "Start and noise are drawn anew for each n, the victim is one: intervals hold for it."


# -- keys ------------------------------------------------------------------------------


class Keys:
    """Keys of results: SHA-256 over all that decides them (see `Digester`).

    Of a trial: the images and labels as tensors; the client, that is the model (parameters and
    buffers by value, normalisation, loss, code), the protocol, the grants, the defences and the
    seed of their draws; the attacker; the attack with all its settings, its prior's and its label
    mapping's weights by value; the metrics; the attack's seed. The names of image files
    and of the victim decide nothing and do not count.

    Of a federation: its model, images, labels, defences, rounds, clients, batches and seed; it is
    a result of its own, which several attackers share.

    Of both: gifd's version and source, PyTorch's version, those of the libraries that
    search or score, the kind of device and the number of threads. These last change how sums are
    rounded, which hundreds of steps may turn into another picture, and they change the seconds.
    Which processor it is does not count, so that the shards of one sweep may run on several
    machines.
    """

    def __init__(self) -> None:
        self._digest = Digester()

    def of(self, value: object) -> str:
        """Of any setting alone, as a model: equal where its values are."""
        return self._digest(value)

    def trial(self, trial: Trial) -> str:
        """Of what `Trial.run` finds."""
        apart = ("names", "victim", "metrics")
        decided = {f.name: getattr(trial, f.name) for f in fields(trial) if f.name not in apart}
        offline = "offline"  # where a metric's weights come from, not which
        metrics = [
            (type(metric), {n: v for n, v in vars(metric).items() if n != offline})
            for metric in trial.metrics
        ]
        libraries = ["scikit-image", "cma"]
        libraries += ["lpips"] if any(metric.name == "lpips" for metric in trial.metrics) else []
        where = _environment(trial.client.model.device, libraries)
        return self._digest(("trial", decided, metrics, where))

    def federation(self, federation: Federation) -> str:
        """Of what `Federation.run` finds."""
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
    """The record of a whole run.

    Raises:
        GifdError: whatever the client or the attack refuses.
        KeyboardInterrupt: Ctrl-C cut it short: what was found so far is not its result.
    """
    ((_, record),) = finished_together([trial], callback)
    return record


def finished_together(
    trials: Sequence[Trial], callback: Callback | None = None
) -> Iterator[tuple[Trial, Record]]:
    """The trials of one lot with the records of their whole runs, before any error is raised.

    Raises:
        GifdError: whatever a client or the attack refuses, of the first one.
        KeyboardInterrupt: Ctrl-C cut one short.
    """
    errors: list[GifdError] = []
    interrupted = False
    for trial, outcome in zip(trials, run_together(trials, callback), strict=True):
        if isinstance(outcome, NotBegunError):
            interrupted = True
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


class Results:
    """The rows of a JSON Lines file by their keys; each is appended as it is computed.

    Several processes may append to one file. A line that a kill left torn is no result: what it
    was to hold is computed again.

    Args:
        path: the file; it need not be there.

    Raises:
        InputError: it cannot be read, or holds something else than such rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        try:
            text = path.read_bytes().decode("utf-8") if path.exists() else ""
        except (OSError, ValueError) as error:  # a text or a path that is none
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
    """The row of a line; None for an empty or a torn one."""
    try:
        row = json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        if line.startswith(_BEGINNING) or _BEGINNING.startswith(line):
            return None
        reason = one_line(error)
        raise InputError(f"expected results in JSON Lines, got {where}: {reason}") from None
    if row is not None and not (isinstance(row, dict) and isinstance(row.get("key"), str)):
        raise InputError(
            f"expected results with keys of their settings, got {where} without one (an older "
            "version's): they cannot be matched, name another --out"
        )
    return row


def number(row: Row, name: str) -> float:
    """A number of a row.

    Raises:
        InputError: it is none.
    """
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(found := float(value)):
                return found
    raise InputError(f"expected a number for '{name}' to average, got {one_line(repr(value), 40)}")
