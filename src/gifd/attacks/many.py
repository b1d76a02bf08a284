"""Many: attack several observations, as many at once as fit the memory."""

from __future__ import annotations

import logging
import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import torch

from gifd.attacker.observation import Observation
from gifd.attacks.attack import Attack
from gifd.attacks.ready import Ready
from gifd.attacks.reconstruction import Reconstruction
from gifd.attacks.together import Answer, of_the_whole, together
from gifd.errors import GifdError, InputError, NotBegunError, one_line
from gifd.search import Callback, Journal, Phase, Population

_log = logging.getLogger("gifd")


def attack_many(
    attack: Attack,
    observations: Iterable[Observation],
    seeds: Iterable[int],
    *,
    callback: Callback | None = None,
    batched: bool | None = None,
    at_once: int | None = None,
    journal: Journal | None = None,
) -> list[Answer]:
    """See `Attack.many`; the journal is that of a single observation."""
    given, seeded = _listed(observations, seeds, at_once)
    assert journal is None or len(given) == 1
    answers: dict[int, Answer] = {}
    waiting: list[tuple[int, Ready]] = []
    for place, (observation, seed) in enumerate(zip(given, seeded, strict=True)):
        try:
            waiting.append((place, Ready.of(attack, observation, seed)))
        except GifdError as error:
            answers[place] = error
    planned, spent = attack.planned_evaluations * len(waiting), 0
    sizes: dict[Hashable, int] = {}
    try:
        while waiting:
            kind = waiting[0][1].kind
            alike = [(place, ready) for place, ready in waiting if ready.kind == kind]
            if kind not in sizes:
                several = [ready for _, ready in alike]
                sizes[kind] = at_once or fitting(attack, several, batched)
            taken = alike[: sizes[kind]]
            told = of_the_whole(callback, spent, planned)
            try:
                found = _apart(attack, [ready for _, ready in taken], told, batched, journal)
            except torch.OutOfMemoryError:
                sizes[kind] = _fewer(len(taken))
                continue
            answers |= zip((place for place, _ in taken), found, strict=True)
            waiting = [each for each in waiting if each[0] not in answers]
            spent += attack.planned_evaluations * len(taken)
            if any(isinstance(each, Reconstruction) and each.interrupted for each in found):
                break
    except KeyboardInterrupt:  # before anything of these was found
        if not any(isinstance(answer, Reconstruction) for answer in answers.values()):
            raise
    return [answers.get(place, NotBegunError()) for place in range(len(given))]


def fitting(attack: Attack, ready: Sequence[Ready], batched: bool | None) -> int:
    """How many of these observations to attack at once.

    One by one it is one. Vectorised it is as many as a trial run has the memory for, of one step
    (or one generation) a phase; half as many again and again until it fits, which is logged.

    Raises:
        KeyboardInterrupt: during the trial.
    """
    vectorised = ready[0].observation.model.device.type != "cpu" if batched is None else batched
    if not vectorised:
        return 1
    trial = replace(attack, phases=tuple(_tried(phase) for phase in attack.phases))
    size = len(ready)
    while size > 1:
        try:
            found = _apart(trial, ready[:size], None, batched)
        except torch.OutOfMemoryError:
            size = _fewer(size)
            continue
        if any(isinstance(each, Reconstruction) and each.interrupted for each in found):
            raise KeyboardInterrupt
        break
    return size


def _tried(phase: Phase) -> Phase:
    """The phase with as few steps as show what it needs."""
    rule = phase.optimizer
    steps = rule.population if isinstance(rule, Population) else 1
    return replace(phase, steps=min(steps, phase.steps), begin=phase.begin.at_cost(1))


def _fewer(size: int) -> int:
    half = (size + 1) // 2
    _log.warning("%d observations do not fit the memory at once: %d are tried", size, half)
    return half


def _apart(
    attack: Attack,
    ready: Sequence[Ready],
    callback: Callback | None,
    batched: bool | None,
    journal: Journal | None = None,
) -> list[Answer]:
    """All together; where one of them cannot be attacked, each by itself.

    Raises:
        torch.OutOfMemoryError: several do not fit the memory.
    """
    try:
        return together(attack, ready, callback, batched, journal)
    except GifdError as error:
        if len(ready) == 1:
            return [error]
        return [_apart(attack, [each], callback, batched)[0] for each in ready]
    except torch.OutOfMemoryError as error:
        if len(ready) > 1:
            raise
        if batched is not False:
            _log.warning("one observation does not fit the memory: its restarts go one by one")
            return _apart(attack, ready, callback, False, journal)
        return [
            InputError(
                "expected memory for one restart of one observation, got too little: "
                f"{one_line(error)}"
            )
        ]


def _listed(
    observations: Iterable[Observation], seeds: Iterable[int], at_once: int | None
) -> tuple[list[Observation], list[int]]:
    """Both as lists.

    Raises:
        InputError: they are no lists of one length, or a number is none.
    """
    try:
        given = list(observations)
        seeded = [operator.index(seed) for seed in seeds]
        count = 1 if at_once is None else operator.index(at_once)
    except TypeError as error:
        raise InputError(
            "expected observations and whole numbers as seeds, each in a list, and a whole number "
            f"at once, got: {one_line(error)}"
        ) from None
    if len(seeded) != len(given):
        raise InputError(
            f"expected one seed for each of {len(given)} observations, got {len(seeded)}"
        )
    if not all(0 <= seed < 2**64 for seed in seeded):
        raise InputError(f"expected seeds from 0 to 2^64 - 1, got {seeded}")
    if count < 1:
        raise InputError(f"expected at least 1 observation at once, got {count}")
    return given, seeded
