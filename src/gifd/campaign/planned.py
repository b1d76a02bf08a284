"""Planned: what can be run: an observation to attack, and a way to score the answer."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from gifd.attacker.observation import Observation
from gifd.attacks import Attack, Reconstruction
from gifd.attacks.many import attack_many
from gifd.campaign.digest import Digester, source
from gifd.campaign.record import Outcome
from gifd.errors import GifdError
from gifd.files import is_file
from gifd.search import Callback, Journal

_log = logging.getLogger("gifd")

LOT = 64
"""The most trials that are run together."""

T = TypeVar("T")
P = TypeVar("P", bound="Planned[Any]")


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned(ABC, Generic[T]):
    """One attack on one observation, not yet run.

    Args:
        attack: the attack.
        seed: its seed.
    """

    attack: Attack
    seed: int = 0

    @property
    @abstractmethod
    def name(self) -> str:
        """For people."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    @abstractmethod
    def observed(self) -> tuple[Observation, T]:
        """What the attacker sees, and what it does not.

        Raises:
            GifdError: there is nothing to see.
        """

    @abstractmethod
    def scored(self, observation: Observation, secret: T, found: Reconstruction) -> Outcome:
        """The outcome of an attack."""

    def run(self, callback: Callback | None = None) -> Outcome:
        """Observe, attack and score.

        Raises:
            GifdError: an error of the client, the attack or a metric.
        """
        (outcome,) = run_together([self], callback)
        if isinstance(outcome, GifdError):
            raise outcome
        return outcome


def run_together(
    trials: Sequence[Planned[Any]],
    callback: Callback | None = None,
    unfinished: Path | None = None,
) -> list[Outcome | GifdError]:
    """Run trials of one attack, as many at once as fit the memory (`Attack.many`).

    Args:
        trials: at least one, all of the same attack.
        callback: told of the whole.
        unfinished: folder in which a single trial is kept after each phase, so that the same trial
            goes on from there after an interruption.

    Returns:
        an outcome each, or the error that this one ended in.

    Raises:
        KeyboardInterrupt: before anything was found.
    """
    outcomes: dict[int, Outcome | GifdError] = {}
    seen: dict[int, tuple[Observation, Any]] = {}
    for place, trial in enumerate(trials):
        try:
            seen[place] = trial.observed()
        except GifdError as error:
            outcomes[place] = error
    answers = attack_many(
        trials[0].attack,
        [observation for observation, _ in seen.values()],
        [trials[place].seed for place in seen],
        callback=callback,
        journal=_journal(trials, seen, unfinished),
    )
    for (place, (observation, secret)), answer in zip(seen.items(), answers, strict=True):
        if isinstance(answer, GifdError):
            outcomes[place] = answer
        else:
            outcomes[place] = trials[place].scored(observation, secret, answer)
    return [outcomes[place] for place in range(len(trials))]


def _journal(
    trials: Sequence[Planned[Any]],
    seen: Mapping[int, tuple[Observation, Any]],
    unfinished: Path | None,
) -> Journal | None:
    """The journal of a single trial of several phases, under a hash of all that decides it."""
    if unfinished is None or list(seen) != [0] or len(trials[0].attack.phases) == 1:
        return None
    trial, (observation, _) = trials[0], seen[0]
    threads = torch.get_num_threads()
    key = Digester()((trial.attack, observation, trial.seed, threads, torch.__version__, source()))
    journal = Journal(path=unfinished / f"{key}.safetensors", key=key)
    if is_file(journal.path):
        _log.warning("%s, %s: goes on after its last complete phase", trial.name, trial.attack.name)
    return journal


def lots(trials: Iterable[P]) -> Iterator[list[P]]:
    """Trials that are run together: on a CPU each alone, on an accelerator those of one attack.

    Of these at most `LOT` together, so that an interruption costs no more.
    """
    waiting: dict[int, list[P]] = {}
    for trial in trials:
        if trial.device.type == "cpu":
            yield [trial]
            continue
        same = waiting.setdefault(id(trial.attack), [])
        same.append(trial)
        if len(same) == LOT:
            yield waiting.pop(id(trial.attack))
    yield from waiting.values()
