"""Client: holds the private batch, runs the protocol once, and says what it gave away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gifd.attacker.beliefs import known_attacker, seen_by
from gifd.attacker.observation import Ledger, Observation, Secret
from gifd.batch_norm import Statistics, batch_statistics, running_statistics
from gifd.errors import InputError, ModelError, expect
from gifd.federation.defenses import Defense, check_order, wrapped
from gifd.federation.protocols import FedSGD, Protocol
from gifd.model import Model

TOLERANCE = 1e-5
"""How far a replayed truth may be from the update, relative to its norm (float32)."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """One participant of the federation.

    Args:
        model: the model it received.
        protocol: what it computes.
        grant_labels: whether the setting tells the attacker the labels (in the ledger).
        grant_batch_norm: whether it tells what entered the batch norms: 'running' statistics, as
            a server has that sends a trained model whole, or those of the private 'batch', as
            it has where clients send their buffers back; None tells neither.
        defenses: what it does to hide its batch, one after the other.
        attacker: what the attacker knows of them: 'naive', 'told' or 'estimated'; the last guesses
            also where there is none.
        seed: of the defences' randomness.

    Raises:
        InputError: no `Model`, or defences that cannot follow each other.
    """

    model: Model
    protocol: Protocol = FedSGD()
    grant_labels: bool = False
    grant_batch_norm: Literal["running", "batch"] | None = None
    defenses: tuple[Defense, ...] = ()
    attacker: str = "told"
    seed: int = 0

    def __post_init__(self) -> None:
        expect(self.model, Model, "a Model, as Model(module=your_network) makes one")
        known_attacker(self.attacker)
        check_order(self.defenses)

    def step(
        self, images: Float[Tensor, "..."], labels: Int[Tensor, "..."]
    ) -> tuple[Observation, Secret]:
        """Compute the update of a private batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) class indices.

        Returns:
            what the server sees, and what stays with the client.

        Raises:
            InputError: no tensors, images outside [0, 1] or a label that the model does not have.
            ModelError: the model does not take the images, its loss is not one number or has no
                second derivative, or the step cannot be replayed (see `check_replay`).
        """
        expect(images, Tensor, "images as a tensor (B, C, H, W)")
        expect(labels, Tensor, "labels as a tensor (B,), such as torch.tensor([3])")
        model = self.model
        secret = Secret(images=images.to(model.device), labels=labels.to(model.device))
        images, labels = secret.images, secret.labels
        with torch.no_grad():
            logits = model.tried(images)
        classes = logits.shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise InputError(
                f"expected labels from 0 to {classes - 1} (the model has {classes} classes), "
                f"got {labels.tolist()}"
            )
        model.check_twice(images.shape[1:])
        update = self.protocol(model, model.parameters, model.buffers, images, labels).detach()
        channels, height, width = images.shape[1:]
        ledger = Ledger(
            image_shape=(channels, height, width),
            batch_size=len(images),
            labels=labels if self.grant_labels else None,
            batch_norm=self._statistics(images),
            batch_norm_source=self.grant_batch_norm,
        )
        observation = Observation(update=update, model=model, protocol=self.protocol, ledger=ledger)
        check_replay(observation, secret)
        if self.defenses or self.attacker == "estimated":
            observation = self._defended(observation, secret)
        return observation, secret

    def _defended(self, observation: Observation, secret: Secret) -> Observation:
        """What the server sees of the same batch behind the defences."""
        model = observation.model
        for defense in self.defenses:
            model = defense.prepare(model, secret.images.shape[1:])
        protocol = wrapped(self.defenses, self.protocol, self.seed)
        parameters, buffers = model.parameters, model.buffers
        update = protocol(model, parameters, buffers, secret.images, secret.labels).detach()
        bare = replace(observation, update=update, model=model)
        seen = seen_by(self.attacker, bare, self.defenses)
        told = tuple(map(repr, self.defenses)) if self.attacker == "told" else None
        ledger = replace(seen.ledger, defenses=told, attacker=self.attacker)
        return replace(seen, ledger=ledger)

    def _statistics(self, images: Tensor) -> tuple[Statistics, ...] | None:
        if self.grant_batch_norm is None:
            return None
        with torch.no_grad():
            if self.grant_batch_norm == "batch":
                return batch_statistics(self.model, images)
            return running_statistics(self.model, images.shape[1:])


def check_replay(observation: Observation, secret: Secret) -> None:
    """Hold the attacker's belief against the truth: replayed, it must give the update back.

    With an update from a real client this names a wrong loss, protocol or mode before any
    attack is judged by it.

    Raises:
        ModelError: the replayed truth is off; the message names the likely reason.
    """
    truth = observation.replay(secret.images, secret.labels).detach()
    seen = observation.update
    scale = float(seen.norm())
    error = float((truth - seen).norm())
    if error <= TOLERANCE * scale:
        return
    cosine = float(truth.dot(seen) / (truth.norm() * seen.norm()).clamp_min(1e-30))
    ratio = scale / max(float(truth.norm()), 1e-30) * (1 if cosine > 0 else -1)
    if float((truth * ratio - seen).norm()) <= 100 * TOLERANCE * scale:
        reason = (
            f"it is the replay times {ratio:.4g}: another loss "
            "reduction (mean or sum), learning rate, number of steps or sign"
        )
    else:
        again = observation.replay(secret.images, secret.labels).detach()
        if float((again - truth).norm()) > TOLERANCE * scale:
            reason = (
                "two replays differ too: dropout or another random layer is active, call .eval()"
            )
        else:
            errors = (truth - seen).squares() / seen.squares().clamp_min(1e-30)
            worst = list(seen)[int(errors.argmax())]
            reason = (
                f"cosine {cosine:.4f}, worst at '{worst}': another loss, normalisation, "
                "protocol, train instead of eval mode, or a defence"
            )
    raise ModelError(f"expected the replayed truth to give the update back, got another: {reason}")
