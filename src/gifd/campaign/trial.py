"""Trial: one client's private images and one attack, run and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacker.observe import known_attacker, observe
from gifd.attacks import Reconstruction
from gifd.campaign.planned import Planned
from gifd.campaign.record import Outcome
from gifd.campaign.recording import Recording
from gifd.federation.client import Client
from gifd.federation.secret import Secret
from gifd.metrics import Metric


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Trial(Planned[Secret]):
    """A planned trial.

    Args:
        names: names of the private images, for the record.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) their class indices, or what else the loss takes (B, ...).
        client: the client that holds them.
        victim: origin of the model, for the record.
        attack: the attack.
        metrics: computed for the answer and for every phase.
        attacker: what the attacker knows of the client's defences: 'static', 'adaptive' or
            'estimated' (`observe`).
        seed: seed of the attack.
        sizes: width and height of each image's file, for the record, if known.

    Raises:
        InputError: an unknown attacker.
    """

    names: Sequence[str]
    images: Float[Tensor, "B C H W"]
    labels: Shaped[Tensor, "B *T"]
    client: Client
    victim: Mapping[str, object]
    metrics: Sequence[Metric]
    attacker: str = "adaptive"
    sizes: Sequence[tuple[int, int] | None] | None = None

    def __post_init__(self) -> None:
        known_attacker(self.attacker)

    @property
    def name(self) -> str:
        """The first image's name, and the number of further images."""
        more = len(self.names) - 1
        return self.names[0] + (f" and {more} more" if more else "")

    @property
    def device(self) -> torch.device:
        """Of the client's model."""
        return self.client.model.device

    def observed(self) -> tuple[Observation, Secret]:
        """What the attacker sees of the client's step, and the private batch.

        Raises:
            GifdError: whatever the client refuses.
        """
        upload, secret = self.client.step(self.images, self.labels)
        defenses = self.client.defenses
        return observe(upload, attacker=self.attacker, defenses=defenses), secret

    def scored(self, observation: Observation, secret: Secret, found: Reconstruction) -> Outcome:
        """The outcome of an attack, each reconstruction paired with a private image."""
        return Recording(
            name=self.name,
            names=self.names,
            attack=self.attack,
            observation=observation,
            victim=self.victim,
            metrics=self.metrics,
            truth=secret.images,
            labels=self.labels,
            defenses=[repr(defense) for defense in self.client.defenses],
            sizes=self.sizes,
        ).outcome(found)
