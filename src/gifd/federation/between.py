"""Between: one gradient on the way from the weights before to those after, for unknown training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.protocols import FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class Known:
    """What `Between` knows of an update: the change of weights, and the factor s."""

    change: Update = field(repr=False)
    scale: float


@final
@dataclass(frozen=True, kw_only=True)
class Between(Protocol):
    """A belief about local training of which steps, rates, batches and optimiser are unknown.

    The change of weights is taken to point against the gradient of all images at one point of the
    line between the weights before and after: `- s dL(theta_0 + at change) / d theta`. A step of
    the attack costs one gradient, however long the client trained. The factor s is unknown; it is
    estimated as the length of the change over that of the gradient of random images there. Use
    distances that ignore it, such as the cosine.

    No client computes it. `observe` binds it to the update.

    Args:
        at: the point, from 0 (the weights before) to 1 (after).
        local: computes the gradient.
        known: of the update, once it is bound.

    Source: after Zhu et al., Surrogate Model Extension (SME), ICML 2023.

    Differs from the paper: there the point is learnt with the images, from 0.5 on; here it stays.
    """

    at: float = 0.5
    local: Protocol = FedSGD()
    known: Known | None = None

    IMAGES: ClassVar[int] = 4
    """Batches of random images for the factor."""

    def __post_init__(self) -> None:
        if not 0 <= self.at <= 1:
            raise InputError(f"expected a point from 0 (before) to 1 (after), got at={self.at}")

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The scaled gradient, with the sign of a change of weights.

        Raises:
            InputError: it is not bound to an update.
        """
        start, known = Update(dict(parameters)), self._known
        head_alone = list(start) != list(known.change)  # whose way is not looked at
        there = start if head_alone else start.add_scaled(known.change, self.at)
        return self.local(model, there, buffers, images, labels) * -known.scale

    def bound(self, upload: Upload) -> Between:
        """The belief about this update."""
        model, rng = upload.model, torch.Generator().manual_seed(0)
        bound = replace(self, known=Known(change=upload.update, scale=1.0))
        like = next(iter(model.parameters.values()))
        lengths = []
        for _ in range(self.IMAGES):
            images = torch.rand(upload.batch_size, *upload.image_shape, generator=rng).to(like)
            labels = model.task(upload.image_shape).drawn(upload.batch_size, rng, like)
            sent = bound(model, model.parameters, model.buffers, images, labels)
            lengths.append(float(sent.detach().norm()))
        typical = max(sum(lengths) / len(lengths), 1e-30)
        scale = float(upload.update.norm()) / typical
        return replace(self, known=Known(change=upload.update, scale=scale))

    @property
    def sized(self) -> bool:
        """The factor is estimated."""
        return False

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """Divided by the estimated factor."""
        return update / -self._known.scale

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """The two ends: the client has computed gradients on the way."""
        return [parameters, Update(dict(parameters)).add_scaled(update, 1.0)]

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` applied to the gradient."""
        return replace(self, local=self.local.localized(wrap))

    @property
    def _known(self) -> Known:
        if self.known is None:
            raise InputError(
                "expected a protocol that a client can compute, got 'between', a belief about "
                "updates that were captured ('gifd invert'): name what the client does"
            )
        return self.known
