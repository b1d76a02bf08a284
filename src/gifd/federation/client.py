"""Client: holds the private batch, runs the protocol once, and uploads the update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.batch_norm import Statistics, batch_statistics, running_statistics
from gifd.errors import ModelError, expect
from gifd.federation.defenses import Defense, check_order, wrapped
from gifd.federation.protocols import FedSGD, Protocol
from gifd.federation.secret import Secret
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update

TOLERANCE = 1e-5
"""Allowed distance of the replayed truth from the update, relative to its norm (float32)."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """One participant of the federation.

    Args:
        model: the model that it received.
        protocol: what it computes.
        grant_labels: whether to disclose the labels.
        grant_batch_norm: which batch-norm statistics to disclose: the 'running' ones, which the
            server knows from the model it sent, or those of the private 'batch', as if the client
            returned its buffers; None: neither.
        defenses: applied in this order to hide the batch.
        seed: of the defences' randomness.

    Raises:
        InputError: not a `Model`, or defences in an order that is not allowed.
    """

    model: Model
    protocol: Protocol = FedSGD()
    grant_labels: bool = False
    grant_batch_norm: Literal["running", "batch"] | None = None
    defenses: tuple[Defense, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        expect(self.model, Model, "a Model, as Model(module=your_network) makes one")
        check_order(self.defenses)

    def step(
        self, images: Float[Tensor, "..."], labels: Shaped[Tensor, "..."]
    ) -> tuple[Upload, Secret]:
        """Compute the update of a private batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) class indices, or what else the loss takes (`gifd.task.Task`).

        Returns:
            what reaches the server, and the private batch.

        Raises:
            InputError: not tensors, images outside [0, 1], or labels that do not fit the loss.
            ModelError: the model does not accept the images, the loss is not a scalar or has no
                second derivative, or the step cannot be replayed (see `check_replay`).
        """
        expect(images, Tensor, "images as a tensor (B, C, H, W)")
        expect(labels, Tensor, "labels as a tensor (B,), such as torch.tensor([3])")
        model = self.model
        if labels.is_floating_point():
            labels = labels.to(next(iter(model.parameters.values())))
        secret = Secret(images=images.to(model.device), labels=labels.to(model.device))
        images, labels = secret.images, secret.labels
        with torch.no_grad():
            model.tried(images)
        model.task(images.shape[1:]).check(labels)
        model.check_twice(images.shape[1:])
        channels, height, width = images.shape[1:]
        bare = Upload(
            update=_computed(self.protocol, model, secret),
            model=model,
            protocol=self.protocol,
            image_shape=(channels, height, width),
            batch_size=len(images),
            labels=labels if self.grant_labels else None,
            batch_norm=self._statistics(images),
            batch_norm_source=self.grant_batch_norm,
        )
        check_replay(bare, secret)
        return (self._defended(bare, secret) if self.defenses else bare), secret

    def _defended(self, bare: Upload, secret: Secret) -> Upload:
        """The upload of the same batch with the defences applied."""
        model = bare.model
        for defense in self.defenses:
            model = defense.prepare(model, bare.image_shape)
        protocol = wrapped(self.defenses, self.protocol, self.seed)
        update = _computed(protocol, model, secret)
        return replace(bare, update=update, model=model, defended=True)

    def _statistics(self, images: Tensor) -> tuple[Statistics, ...] | None:
        if self.grant_batch_norm is None:
            return None
        with torch.no_grad():
            if self.grant_batch_norm == "batch":
                return batch_statistics(self.model, images)
            return running_statistics(self.model, images.shape[1:])


def _computed(protocol: Protocol, model: Model, secret: Secret) -> Update:
    """The update of the private batch, without a graph."""
    return protocol(model, model.parameters, model.buffers, secret.images, secret.labels).detach()


def check_replay(upload: Upload, secret: Secret) -> None:
    """Check that the agreed protocol reproduces an undefended update from the private batch.

    For an update of a real client this detects a wrong loss, protocol or mode before you trust
    any attack.

    Raises:
        ModelError: it does not; the message names the likely reason.
    """
    truth = upload.replay(secret.images, secret.labels).detach()
    seen = upload.update
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
        again = upload.replay(secret.images, secret.labels).detach()
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
