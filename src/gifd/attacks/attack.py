"""Attack: a value made of phases. Called with an observation, it answers with images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacks.extensions import Preset
from gifd.attacks.label_mapping import LabelMapping
from gifd.errors import InputError, expect
from gifd.leakage.labels import label_hypotheses
from gifd.priors.generator import Generator
from gifd.search.engine import Callback, Search, planned_evaluations, search
from gifd.search.measure import Measure
from gifd.search.phase import Phase, PhaseResult
from gifd.search.spaces import Setting


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """What an attack makes of an observation.

    Args:
        images: (B, C, H, W) in [0, 1]: the answer.
        labels: (B,) the labels it replayed with.
        label_source: whether they were 'granted', 'inferred' (exact), 'estimated' or 'searched'
            with the images.
        hypotheses: how many labellings the restarts tried, in turn.
        prior_labels: (B,) the classes a conditional prior was asked for; None without one.
        distance: the answer's matching distance, by `selection`.
        selection: the one measure by which restarts, phases and the answer were chosen.
        phase: the name of the phase that gave the answer.
        phases: what every phase found.
        interrupted: whether Ctrl-C cut the search short.
        dropped: the restarts that became non-finite, by number.
        seed, seconds: of this run.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, "B"]
    label_source: str
    hypotheses: int
    prior_labels: Int[Tensor, "B"] | None
    distance: float
    selection: Measure
    phase: str
    phases: tuple[PhaseResult, ...]
    interrupted: bool
    dropped: tuple[int, ...]
    seed: int
    seconds: float

    @property
    def evaluations(self) -> int:
        """Victim gradients computed, all phases and restarts together."""
        return sum(phase.evaluations for phase in self.phases)


@final
@dataclass(frozen=True, kw_only=True)
class Attack:
    """Phases, one measure to choose by and a rule for the answer.

    Args:
        name: as in the catalogue.
        preset: 'paper' (its own), 'gifd-paper' (as GIFD compares it), or 'strongest' with
            extensions of ours.
        reference: the paper.
        phases: run one after the other.
        restarts: searches beside each other; the one with the least distance wins.
        prior: the generator, for attacks that have one.
        selection: by what phases and restarts are compared.
        answer: 'least-distance' over the phases, or the 'last' phase.
        extensions: what is ours in it, by name: for the record.
        label_mapping: for a conditional prior whose classes are not the private ones.

    Raises:
        InputError: no restart, or a prior missing.
    """

    name: str
    reference: str
    phases: tuple[Phase, ...]
    preset: Preset = "paper"
    restarts: int = 4
    prior: Generator | None = None
    selection: Measure = Measure()
    answer: Literal["least-distance", "last"] = "least-distance"
    extensions: Mapping[str, float] = field(default_factory=dict)
    label_mapping: LabelMapping | None = None

    def __post_init__(self) -> None:
        if self.restarts < 1 or not self.phases:
            raise InputError(
                f"expected at least one phase and one restart in '{self.name}', got "
                f"{len(self.phases)} and {self.restarts}"
            )
        if self.prior is None and any(phase.space.needs_prior for phase in self.phases):
            raise InputError(f"expected a prior for '{self.name}', got none: name one")
        if self.label_mapping is not None and (self.prior is None or self.prior.classes is None):
            raise InputError(
                f"expected a conditional prior to map labels to, got {self.prior} in '{self.name}'"
            )
        stages = 0 if self.prior is None else len(self.prior)
        depths = [phase.space.position(stages) for phase in self.phases]
        if depths != sorted(depths):
            raise InputError(
                f"expected phases of '{self.name}' in the generator's order, got "
                f"{[phase.name for phase in self.phases]}"
            )

    def __call__(
        self,
        observation: Observation,
        *,
        seed: int = 0,
        callback: Callback | None = None,
        batched: bool | None = None,
    ) -> Reconstruction:
        """Attack one observation.

        Args:
            observation: what the server has.
            seed: of all randomness in the attack.
            callback: told of every step.
            batched: see `gifd.search.search`.

        Raises:
            InputError: the prior makes images of another shape than the private ones, or
                the labels can be neither inferred nor were granted.
            ModelError: no linear head, no second derivative, or nothing finite was found.
        """
        expect(observation, Observation, "an Observation, as observe(upload) makes one")
        began = time.perf_counter()
        model, ledger = observation.model, observation.ledger
        if self.prior is not None and self.prior.image_shape != ledger.image_shape:
            raise InputError(
                f"expected a prior for images of {_times(ledger.image_shape)}, got "
                f"{self.prior}: choose another prior or image size"
            )
        if any(phase.optimizer.gradients for phase in self.phases):
            model.check_twice(ledger.image_shape)
        if any(phase.space.searches_labels for phase in self.phases):
            known = torch.zeros(1, ledger.batch_size, dtype=torch.long, device=model.device)
            source = "searched"
        else:
            known, source = label_hypotheses(observation, most=self.restarts)
        labels = known[torch.arange(self.restarts) % len(known)]  # (R, B)
        generator = None if self.prior is None else self.prior.to(model.device)

        def run(phases: tuple[Phase, ...], prior_labels: Tensor, told: Callback | None) -> Search:
            setting = Setting(
                model=model,
                generator=generator,
                image_shape=ledger.image_shape,
                batch=ledger.batch_size,
                restarts=self.restarts,
                rng=torch.Generator().manual_seed(seed),
                labels=prior_labels,
            )
            return search(
                observation,
                labels,
                phases,
                setting,
                selection=self.selection,
                callback=told,
                batched=batched,
            )

        asked, coarse, fine = labels, None, None
        if self.label_mapping is not None and generator is not None:
            rng = torch.Generator().manual_seed(seed)
            asked = self.label_mapping.begin(labels, generator.classes or 1, rng)
            phases = self.label_mapping.phases(self.phases)
            coarse = run(phases, asked, self._told(callback, 0))
            if not coarse.interrupted:
                asked = self.label_mapping.classify(self._answer(coarse).images).expand_as(labels)
        before = () if coarse is None else coarse.phases
        try:
            if coarse is None or not coarse.interrupted:
                spent = sum(phase.evaluations for phase in before)
                fine = run(self.phases, asked, self._told(callback, spent))
        except KeyboardInterrupt:  # before anything fine was found
            if coarse is None:
                raise
            coarse = dataclasses.replace(coarse, interrupted=True)
        found = fine or coarse
        assert found is not None
        chosen = self._answer(found)
        return Reconstruction(
            images=chosen.images,
            labels=chosen.labels,
            label_source=source,
            prior_labels=(
                asked[chosen.best_restart] if generator is not None and generator.classes else None
            ),
            hypotheses=len(known),
            distance=chosen.distance,
            selection=self.selection,
            phase=chosen.name,
            phases=before if fine is None else (*before, *fine.phases),
            interrupted=found.interrupted,
            dropped=found.dropped,
            seed=seed,
            seconds=time.perf_counter() - began,
        )

    def _answer(self, found: Search) -> PhaseResult:
        if self.answer == "least-distance":
            return min(found.phases, key=lambda phase: phase.distance)
        return found.phases[-1]

    def _told(self, callback: Callback | None, spent: int) -> Callback | None:
        """The callback, told of the whole: `spent` evaluations went before."""
        if callback is None or self.label_mapping is None:
            return callback
        return lambda now: callback(
            dataclasses.replace(
                now,
                evaluations=now.evaluations + spent,
                evaluations_planned=self.planned_evaluations,
            )
        )

    def with_steps(self, total: int) -> Attack:
        """The same attack with `total` steps dealt over its phases in their proportions.

        A coarse pass (see `LabelMapping`) comes on top.

        Raises:
            InputError: fewer steps than phases.
        """
        if total < len(self.phases):
            raise InputError(
                f"expected at least {len(self.phases)} steps (one a phase of '{self.name}'), "
                f"got {total}"
            )
        planned = sum(phase.steps for phase in self.phases)
        dealt, spent, seen = [], 0, 0
        for index, phase in enumerate(self.phases):
            seen += phase.steps
            left = len(self.phases) - index - 1
            upto = min(max(round(total * seen / planned), spent + 1), total - left)
            dealt.append(dataclasses.replace(phase, steps=upto - spent))
            spent = upto
        return dataclasses.replace(self, phases=tuple(dealt))

    @property
    def planned_evaluations(self) -> int:
        """Victim gradients of a whole run, if no restart is dropped."""
        passes = [self.phases]
        if self.label_mapping is not None:
            passes.append(self.label_mapping.phases(self.phases))
        return sum(planned_evaluations(each, self.restarts, self.selection) for each in passes)

    def with_evaluations(self, total: int) -> Attack:
        """The same attack with as many steps as `total` victim gradients pay for.

        Raises:
            InputError: they pay for less than a step a phase.
        """
        low, high = len(self.phases), max(total, len(self.phases))
        if self.with_steps(low).planned_evaluations > total:
            raise InputError(
                f"expected at least {self.with_steps(low).planned_evaluations} evaluations for "
                f"'{self.name}' with {self.restarts} restarts, got {total}"
            )
        while low < high:  # the most steps that fit
            middle = (low + high + 1) // 2
            if self.with_steps(middle).planned_evaluations <= total:
                low = middle
            else:
                high = middle - 1
        return self.with_steps(low)

    def describe(self) -> dict[str, object]:
        """Every setting in plain values, for the record."""
        return {
            "name": self.name,
            "preset": self.preset,
            "reference": self.reference,
            "restarts": self.restarts,
            "prior": None if self.prior is None else repr(self.prior),
            "selection": repr(self.selection),
            "answer": self.answer,
            "extensions": dict(self.extensions),
            "label_mapping": _plain(self.label_mapping),
            "phases": [
                {f.name: _plain(getattr(phase, f.name)) for f in dataclasses.fields(phase)}
                for phase in self.phases
            ],
        }


def expect_prior(prior: object) -> None:
    """Refuse what is no generator, such as the name of one.

    Raises:
        InputError: it is none.
    """
    expect(prior, Generator, "a prior, as faces64() makes one")


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: repr(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [repr(item) for item in value]
    return repr(value)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
