"""Ready: one observation with all that an attack on it begins with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacks.attack import Attack
from gifd.errors import InputError, expect
from gifd.leakage.labels import label_hypotheses


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """One observation and what an attack begins with.

    Args:
        observation: what the server has.
        seed: of all randomness of its attack.
        labels: (R, B) that each restart is replayed with.
        asked: (R, B) the classes that a conditional prior is asked for: the labels, or random ones
            where an image does not have one class.
        source, hypotheses: where they come from, and how many labellings there are.
    """

    observation: Observation
    seed: int
    labels: Shaped[Tensor, "R B *T"]
    asked: Int[Tensor, "R B"]
    source: str
    hypotheses: int

    @classmethod
    def of(cls, attack: Attack, observation: Observation, seed: int) -> Ready:
        """Read the labels and refuse what cannot be attacked.

        Raises:
            InputError: the prior makes images of another shape than the private ones, or the
                labels can be neither inferred nor were granted.
            ModelError: no linear head, or no second derivative.
        """
        expect(observation, Observation, "an Observation, as observe(upload) makes one")
        model, ledger = observation.model, observation.ledger
        if attack.prior is not None and attack.prior.image_shape != ledger.image_shape:
            raise InputError(
                f"expected a prior for images of {_times(ledger.image_shape)}, got "
                f"{attack.prior}: choose another prior or image size, or none "
                "where an attack can do without"
            )
        if attack.needs_gradients:
            model.check_twice(ledger.image_shape)
        task = model.task(ledger.image_shape)
        if any(phase.space.searches_labels for phase in attack.phases):
            model.check_soft(ledger.image_shape)
            like = next(iter(model.parameters.values()))
            known = task.zeros(ledger.batch_size, like)[None]
            source = "searched"
        else:
            known, source = label_hypotheses(observation, most=attack.restarts)
        labels = known[torch.arange(attack.restarts) % len(known)]
        return cls(
            observation=observation,
            seed=seed,
            labels=labels,
            asked=labels if task.plain else _random(attack, ledger.batch_size, seed),
            source=source,
            hypotheses=len(known),
        )

    @property
    def kind(self) -> Hashable:
        """What observations have in common that can be searched in one call."""
        ledger = self.observation.ledger
        granted = None if ledger.batch_norm is None else len(ledger.batch_norm)
        return id(self.observation.model), ledger.image_shape, ledger.batch_size, granted


def _random(attack: Attack, batch: int, seed: int) -> Int[Tensor, "R B"]:
    """Random classes of the prior; 0 without a conditional one."""
    classes = 1 if attack.prior is None else attack.prior.classes or 1
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (attack.restarts, batch), generator=rng)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
