"""Together: one attack on several observations in one call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.attacks.attack import Attack
from gifd.attacks.label_mapping import LabelMapping
from gifd.attacks.ready import Ready
from gifd.attacks.reconstruction import Reconstruction
from gifd.errors import GifdError
from gifd.search import (
    Callback,
    Draw,
    Journal,
    Phase,
    PhaseResult,
    Search,
    SearchContext,
    search,
)

Answer = Reconstruction | GifdError


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was found for one observation, and by which classes of a conditional prior.

    Args:
        search: whose best phase answers.
        before: the phases of a coarse pass, which do not.
        asked: (R, B) the prior's classes.
    """

    search: Search
    before: tuple[PhaseResult, ...]
    asked: Int[Tensor, "R B"]


def _mapped(attack: Attack, mapping: LabelMapping, run: Run, classes: int) -> list[Found]:
    """A coarse pass by the private labels, then one by the classes that its images look like."""
    asked = [mapping.begin(each.asked, classes, each.seed) for each in run.ready]
    coarse = run(mapping.phases(attack.phases), asked, 0)
    if any(each.interrupted for each in coarse):
        return [Found(search=c, before=(), asked=own) for c, own in zip(coarse, asked, strict=True)]
    spent = sum(phase.evaluations for each in coarse for phase in each.results)
    try:
        mapped = [
            mapping.mapped(attack.chosen(each.results).images, own) if each.results else own
            for each, own in zip(coarse, asked, strict=True)
        ]
        fine = run(attack.phases, mapped, spent, run.journal)
    except KeyboardInterrupt:  # before anything fine was found
        return [
            Found(search=replace(c, interrupted=True), before=(), asked=own)
            for c, own in zip(coarse, asked, strict=True)
        ]
    return [
        Found(search=after, before=before.results, asked=own)
        for after, before, own in zip(fine, coarse, mapped, strict=True)
    ]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The searches of some phases for several observations at once.

    Args:
        attack, ready, callback, batched, journal: see `gifd.attacks.many.attack_many`.
    """

    attack: Attack
    ready: Sequence[Ready]
    callback: Callback | None
    batched: bool | None
    journal: Journal | None = None

    def __call__(
        self,
        phases: Sequence[Phase],
        asked: Sequence[Int[Tensor, "R B"]],
        spent: int,
        journal: Journal | None = None,
    ) -> list[Search]:
        """Run these phases.

        Args:
            phases: of the attack, or of its coarse pass.
            asked: the classes that a conditional prior is asked for, one (R, B) an observation.
            spent: evaluations before it.
            journal: of these phases.
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
            callback=of_the_whole(
                self.callback, spent, self.attack.planned_evaluations * len(self.ready)
            ),
            batched=self.batched,
            journal=journal,
        )


def together(
    attack: Attack,
    ready: Sequence[Ready],
    callback: Callback | None,
    batched: bool | None,
    journal: Journal | None = None,
) -> list[Answer]:
    """Search for all of them in one call."""
    began = time.perf_counter()
    run = Run(attack=attack, ready=ready, callback=callback, batched=batched, journal=journal)
    if attack.label_mapping is None or attack.prior is None:
        asked = [each.asked for each in ready]
        searches = run(attack.phases, asked, 0, journal)
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


def of_the_whole(callback: Callback | None, spent: int, planned: int) -> Callback | None:
    """The callback, told of all observations."""
    if callback is None:
        return None
    return lambda now: callback(
        replace(now, evaluations=now.evaluations + spent, evaluations_planned=planned)
    )
