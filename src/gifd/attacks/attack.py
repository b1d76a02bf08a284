"""Attack: a value made of phases; called with an observation, it returns a reconstruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from gifd.attacker.observation import Observation
from gifd.attacks.label_mapping import LabelMapping
from gifd.attacks.presets import Preset
from gifd.attacks.reconstruction import Reconstruction
from gifd.errors import GifdError, InputError
from gifd.priors.generator import Generator
from gifd.search import (
    Callback,
    Journal,
    Measure,
    Optimizer,
    Phase,
    PhaseResult,
    planned_evaluations,
)


@final
@dataclass(frozen=True, kw_only=True)
class Attack:
    """Phases, a measure to select by and a rule for the answer.

    Args:
        name: as in the catalogue.
        preset: 'paper' (its own), 'gifd-paper' (as in GIFD's comparison), or 'strongest' (with
            our extensions).
        reference: the paper.
        phases: run one after the other.
        restarts: number of parallel searches; the one with the least distance wins.
        prior: the generator, if the attack uses one.
        selection: the measure that compares phases and restarts.
        answer: the phase of 'least-distance', or the 'last' phase.
        extensions: our extensions in use, by name, for the record.
        label_mapping: for a conditional prior whose classes are not the victim's.

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
        if self.answer not in ("least-distance", "last"):
            raise InputError(
                f"expected 'least-distance' or 'last' to answer in '{self.name}', got "
                f"'{self.answer}'"
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
        journal: Journal | None = None,
    ) -> Reconstruction:
        """Attack one observation.

        Args:
            observation: the server's view.
            seed: seed of all randomness in the attack.
            callback: receives the progress at every step; on accelerators at every 25th.
            batched: see `gifd.search.search`.
            journal: keeps the run after each phase, so that the same call goes on from there after
                an interruption, to the same result.

        Raises:
            InputError: the prior makes images of another shape than the private ones, or labels
                are neither granted nor can be inferred.
            ModelError: no linear head, no second derivative, or no finite distance.
            KeyboardInterrupt: before anything was found.
        """
        from gifd.attacks.many import attack_many  # avoids a circular import

        (found,) = attack_many(
            self, [observation], [seed], callback=callback, batched=batched, journal=journal
        )
        if isinstance(found, GifdError):
            raise found
        return found

    def many(
        self,
        observations: Iterable[Observation],
        *,
        seeds: Iterable[int],
        callback: Callback | None = None,
        batched: bool | None = None,
        at_once: int | None = None,
    ) -> list[Reconstruction | GifdError]:
        """Attack several independent observations, as many at once as fit the memory.

        Those of one model, image size and batch size are searched together. The results equal
        those of one after the other, to rounding.

        Args:
            observations: one per client.
            seeds: one per observation.
            callback: receives the progress of the whole.
            batched: see `gifd.search.search`.
            at_once: how many together; None takes what fits an accelerator's memory, found by
                trial, or one on a CPU, where more are no faster.

        Returns:
            For each observation, in order, its answer or the error that ended it. After Ctrl-C
            the answers so far, and a `NotBegunError` for the others.

        Raises:
            InputError: the numbers of seeds and observations differ.
            KeyboardInterrupt: before anything was found.
        """
        from gifd.attacks.many import attack_many  # avoids a circular import

        return attack_many(
            self, observations, seeds, callback=callback, batched=batched, at_once=at_once
        )

    def chosen(self, results: Sequence[PhaseResult]) -> PhaseResult:
        """The phase whose result is the answer."""
        if self.answer == "least-distance":
            return min(results, key=lambda result: result.distance)
        return results[-1]

    @property
    def needs_gradients(self) -> bool:
        """Whether a phase uses gradients."""
        return any(isinstance(phase.optimizer, Optimizer) for phase in self.phases)

    def with_steps(self, total: int) -> Attack:
        """The same attack with `total` evaluations per restart, split over its phases.

        A coarse pass (see `LabelMapping`) is not included.

        Raises:
            InputError: fewer steps than phases.
        """
        if total < len(self.phases):
            raise InputError(
                f"expected at least {len(self.phases)} steps (one a phase of '{self.name}'), "
                f"got {total}"
            )
        planned = sum(phase.cost for phase in self.phases)
        dealt, spent, seen = [], 0, 0
        for index, phase in enumerate(self.phases):
            seen += phase.cost
            left = len(self.phases) - index - 1
            upto = min(max(round(total * seen / planned), spent + 1), total - left)
            dealt.append(phase.at_cost(upto - spent))
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
        """The same attack with as many steps as `total` victim gradients allow.

        Raises:
            InputError: they allow less than one step per phase.
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
        """All settings as plain values, for the record."""
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


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {name: repr(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [repr(item) for item in value]
    return repr(value)
