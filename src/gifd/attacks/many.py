"""Many: attack several observations, as many at once as fit the memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacks.label_mapping import LabelMapping
from gifd.attacks.reconstruction import Reconstruction
from gifd.errors import GifdError, InputError, expect
from gifd.leakage.labels import label_hypotheses
from gifd.search import Callback, Draw, Phase, PhaseResult, Search, SearchContext, search

if TYPE_CHECKING:
    from gifd.attacks.attack import Attack

Answer = Reconstruction | GifdError

_log = logging.getLogger("gifd")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """One observation that is ready to be attacked.

    Args:
        observation: the server's view.
        seed: seed of all randomness of its attack.
        labels: (R, B) labels of each restart's replay.
        source, hypotheses: their source, and the number of different labellings.
    """

    observation: Observation
    seed: int
    labels: Int[Tensor, "R B"]
    source: str
    hypotheses: int

    @classmethod
    def of(cls, attack: Attack, observation: Observation, seed: int) -> Ready:
        """Infer the labels and check that the attack can run.

        Raises:
            InputError: the prior makes images of another shape than the private ones, or labels
                are neither granted nor can be inferred.
            ModelError: no linear head, or no second derivative.
        """
        expect(observation, Observation, "an Observation, as observe(upload) makes one")
        model, ledger = observation.model, observation.ledger
        if attack.prior is not None and attack.prior.image_shape != ledger.image_shape:
            raise InputError(
                f"expected a prior for images of {_times(ledger.image_shape)}, got "
                f"{attack.prior}: choose another prior or image size"
            )
        if attack.needs_gradients:
            model.check_twice(ledger.image_shape)
        if any(phase.space.searches_labels for phase in attack.phases):
            known = torch.zeros(1, ledger.batch_size, dtype=torch.long, device=model.device)
            source = "searched"
        else:
            known, source = label_hypotheses(observation, most=attack.restarts)
        return cls(
            observation=observation,
            seed=seed,
            labels=known[torch.arange(attack.restarts) % len(known)],
            source=source,
            hypotheses=len(known),
        )

    def alike(self, other: Ready) -> bool:
        """Whether both can be searched together."""
        ours, theirs = self.observation, other.observation
        return ours.model is theirs.model and (
            (ours.ledger.image_shape, ours.ledger.batch_size, ours.ledger.batch_norm is None)
            == (
                theirs.ledger.image_shape,
                theirs.ledger.batch_size,
                theirs.ledger.batch_norm is None,
            )
        )


def attack_many(
    attack: Attack,
    observations: Sequence[Observation],
    seeds: Sequence[int],
    *,
    callback: Callback | None = None,
    batched: bool | None = None,
    at_once: int | None = None,
) -> list[Answer]:
    """See `Attack.many`."""
    if len(seeds) != len(observations):
        raise InputError(
            f"expected one seed for each of {len(observations)} observations, got {len(seeds)}"
        )
    if at_once is not None and at_once < 1:
        raise InputError(f"expected at least 1 observation at once, got {at_once}")
    answers: dict[int, Answer] = {}
    waiting: list[tuple[int, Ready]] = []
    for place, (observation, seed) in enumerate(zip(observations, seeds, strict=True)):
        try:
            waiting.append((place, Ready.of(attack, observation, seed)))
        except GifdError as error:
            answers[place] = error
    planned, spent = attack.planned_evaluations * len(waiting), 0
    most = len(waiting) if at_once is None else at_once
    while waiting:
        alike = [each for each in waiting if each[1].alike(waiting[0][1])][:most]
        if at_once is None:
            most = fitting(attack, [ready for _, ready in alike], batched)
        taken = alike[:most]
        told = _of_the_whole(callback, spent, planned)
        try:
            found = _together(attack, [ready for _, ready in taken], told, batched)
        except KeyboardInterrupt:  # before anything of these was found
            if not answers:
                raise
            break
        answers |= zip((place for place, _ in taken), found, strict=True)
        waiting = [each for each in waiting if each not in taken]
        spent += attack.planned_evaluations * len(taken)
        if any(isinstance(each, Reconstruction) and each.interrupted for each in found):
            break
    return [answers[place] for place in sorted(answers)]


def fitting(attack: Attack, ready: Sequence[Ready], batched: bool | None) -> int:
    """How many of these observations to attack at once.

    On a CPU one, as more are no faster. On an accelerator as many as fit the memory in a trial
    run of one step per phase, found by repeated halving; fewer than all are logged.
    """
    device = ready[0].observation.model.device
    if not (batched or (batched is None and device.type != "cpu")) or len(ready) == 1:
        return 1
    trial, size = attack.with_steps(len(attack.phases)), len(ready)
    while size > 1:
        try:
            _together(trial, ready[:size], None, batched)
            break
        except torch.OutOfMemoryError:
            size = (size + 1) // 2
    if size < len(ready):
        _log.warning("%d of %d observations fit the memory at once", size, len(ready))
    return size


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The result for one observation.

    Args:
        search: the search whose phases can answer.
        before: the phases of a coarse pass, which cannot.
        asked: (R, B) the classes given to a conditional prior.
    """

    search: Search
    before: tuple[PhaseResult, ...]
    asked: Int[Tensor, "R B"]


def _mapped(attack: Attack, mapping: LabelMapping, run: Run, classes: int) -> list[Found]:
    """A coarse pass with the private labels, then the attack with the classes of its images."""
    asked = [mapping.begin(each.labels, classes, each.seed) for each in run.ready]
    coarse = run(mapping.phases(attack.phases), asked, 0)
    if any(each.interrupted for each in coarse):
        return [Found(search=c, before=(), asked=own) for c, own in zip(coarse, asked, strict=True)]
    mapped, befores = [], []
    for each, own in zip(coarse, asked, strict=True):
        if each.results:
            own = mapping.classify(attack.chosen(each.results).images).expand_as(own)
        mapped.append(own)
        befores.append(each.results)
    spent = sum(phase.evaluations for each in befores for phase in each)
    try:
        fine = run(attack.phases, mapped, spent)
    except KeyboardInterrupt:  # before anything fine was found
        return [
            Found(search=replace(c, interrupted=True), before=(), asked=own)
            for c, own in zip(coarse, mapped, strict=True)
        ]
    return [
        Found(search=search, before=before, asked=own)
        for search, before, own in zip(fine, befores, mapped, strict=True)
    ]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The searches of some phases for several observations at once.

    Args:
        attack, ready, callback, batched: see `attack_many`.
    """

    attack: Attack
    ready: Sequence[Ready]
    callback: Callback | None
    batched: bool | None

    def __call__(
        self, phases: Sequence[Phase], asked: Sequence[Int[Tensor, "R B"]], spent: int
    ) -> list[Search]:
        """Run these phases.

        Args:
            phases: of the attack, or of its coarse pass.
            asked: the classes for a conditional prior, one (R, B) per observation.
            spent: evaluations before this run.
        """
        first = self.ready[0].observation
        prior = self.attack.prior
        return search(
            [each.observation for each in self.ready],
            torch.stack([each.labels for each in self.ready]),
            phases,
            SearchContext(
                model=first.model,
                generator=None if prior is None else prior.to(first.model.device),
                image_shape=first.ledger.image_shape,
                batch=first.ledger.batch_size,
            ),
            selection=self.attack.selection,
            draws=[
                Draw(
                    restarts=self.attack.restarts,
                    rng=torch.Generator().manual_seed(each.seed),
                    labels=own,
                )
                for each, own in zip(self.ready, asked, strict=True)
            ],
            callback=_of_the_whole(
                self.callback, spent, self.attack.planned_evaluations * len(self.ready)
            ),
            batched=self.batched,
        )


def _together(
    attack: Attack, ready: Sequence[Ready], callback: Callback | None, batched: bool | None
) -> list[Answer]:
    """Search all of them in one call."""
    began = time.perf_counter()
    run = Run(attack=attack, ready=ready, callback=callback, batched=batched)
    if attack.label_mapping is None or attack.prior is None:
        asked = [each.labels for each in ready]
        searches = run(attack.phases, asked, 0)
        found = [Found(search=s, before=(), asked=a) for s, a in zip(searches, asked, strict=True)]
    else:
        found = _mapped(attack, attack.label_mapping, run, attack.prior.classes or 1)
    seconds = (time.perf_counter() - began) / len(ready)
    answers: list[Answer] = []
    for each, own in zip(ready, found, strict=True):
        try:
            answers.append(_answer(attack, each, own, len(ready), seconds))
        except GifdError as error:
            answers.append(error)
    return answers


def _answer(
    attack: Attack, ready: Ready, found: Found, at_once: int, seconds: float
) -> Reconstruction:
    chosen = attack.chosen(found.search.phases)
    conditional = attack.prior is not None and attack.prior.classes
    return Reconstruction(
        images=chosen.images,
        labels=chosen.labels,
        label_source=ready.source,
        prior_labels=found.asked[chosen.best_restart] if conditional else None,
        hypotheses=ready.hypotheses,
        distance=chosen.distance,
        selection=attack.selection,
        phase=chosen.name,
        phases=(*found.before, *found.search.phases),
        interrupted=found.search.interrupted,
        dropped=found.search.dropped,
        at_once=at_once,
        seed=ready.seed,
        seconds=seconds,
    )


def _of_the_whole(callback: Callback | None, spent: int, planned: int) -> Callback | None:
    """The callback, with the progress of all observations."""
    if callback is None:
        return None
    return lambda now: callback(
        replace(now, evaluations=now.evaluations + spent, evaluations_planned=planned)
    )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
