"""Inversion: one attack on a captured update, whose private images may be unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacks import Reconstruction
from gifd.audit import Fit, null_distances
from gifd.campaign.planned import Planned
from gifd.campaign.record import Evidence, Outcome, finite
from gifd.campaign.recording import Recording
from gifd.metrics import Metric


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion(Planned[None]):
    """A planned attack on a captured update.

    Args:
        observation: the update, and what is assumed about its client.
        update: name of its file, for the record.
        notes: what was changed so that it fits the model.
        fit: whether it looks like one of the assumed client.
        considered: assumptions about the client that were compared, and the misfit of each.
        victim: origin of the model, for the record.
        truth: (B, C, H, W) in [0, 1], the private images; None if they are unknown.
        names: of the private images, if known.
        metrics: computed against the truth.
    """

    observation: Observation
    update: str
    notes: Sequence[str]
    fit: Fit
    considered: Mapping[str, float]
    victim: Mapping[str, object]
    truth: Float[Tensor, "B C H W"] | None = None
    names: Sequence[str] | None = None
    metrics: Sequence[Metric] = ()

    @property
    def name(self) -> str:
        """The update's file."""
        return self.update

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.observation.model.device

    def observed(self) -> tuple[Observation, None]:
        """The observation."""
        return self.observation, None

    def scored(self, observation: Observation, secret: None, found: Reconstruction) -> Outcome:
        """The outcome, with what can be said without the private images."""
        size = observation.ledger.batch_size
        nulls = null_distances(observation, found.labels, found.selection)
        phase = next(each for each in found.phases if each.name == found.phase)
        return Recording(
            name=self.update,
            names=self.names or [f"image {number}" for number in range(1, size + 1)],
            attack=self.attack,
            observation=observation,
            victim=self.victim,
            metrics=self.metrics,
            truth=None if self.truth is None else self.truth.to(self.device),
            defenses=observation.ledger.defenses or (),
        ).outcome(
            found,
            Evidence(
                update=self.update,
                notes=list(self.notes),
                misfit=finite(self.fit.misfit),
                explained=self.fit.explained,
                reason=self.fit.reason,
                simulated=self.fit.clients,
                considered={name: finite(value) for name, value in self.considered.items()},
                null_distances=[finite(null) for null in nulls],
                agreement=phase.agreement,
            ),
        )
