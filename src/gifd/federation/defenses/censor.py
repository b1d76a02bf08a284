"""CENSOR: instead of the gradient, an orthogonal vector that lowers the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Defense, Local, Wrapped, like
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update

_TINY = 1e-24


@final
@dataclass(frozen=True, kw_only=True)
class Censor(Defense):
    """The best of `tries` random updates that are orthogonal to the gradient and equally long.

    Length and orthogonality hold for each tensor. The best update lowers the loss of the batch
    most in one step. If none lowers it, the gradient is sent.

    Args:
        tries: T, at least 1.
        step: learning rate of the trial steps.

    Source: Zhang et al., CENSOR: Defense Against Gradient Inversion via Orthogonal Subspace
    Bayesian Sampling, NDSS 2025, Algorithm 1; 20 tries at 1e-4 as in its code.

    Differs from the official code, which divides the projection by |g| instead of |g|^2, so that
    its updates are orthogonal only if |g| is 1. Here they always are.
    """

    tries: int = 20
    step: float = 1e-4

    inside = True

    def __post_init__(self) -> None:
        if self.tries < 1 or not self.step > 0:
            raise InputError(
                f"expected tries >= 1 and step > 0, got tries={self.tries}, step={self.step}"
            )

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """In every local step."""
        rng = torch.Generator().manual_seed(seed)
        return protocol.localized(lambda inner: _Sampled(inner=inner, censor=self, rng=rng))

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The update, made orthogonal to the replayed gradient and equally long.

        The replay of the private images leaves the update unchanged.
        """
        return _Orthogonal(inner=protocol, sent=upload.update)


def orthogonal(vector: Update, to: Update) -> Update:
    """The part of `vector` orthogonal to `to`, scaled to the length of `to`; for each tensor."""
    tensors = {}
    for name, own in to.items():
        other, size = vector[name], own.square().sum()
        rest = other - (other * own).sum() / (size + _TINY) * own
        tensors[name] = rest * ((size + _TINY) / (rest.square().sum() + _TINY)).sqrt()
    return Update(tensors)


@dataclass(frozen=True, kw_only=True)
class _Sampled(Local):
    censor: Censor
    rng: torch.Generator

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The best try, or the gradient."""
        gradient = self.inner(model, parameters, buffers, images, labels).detach()
        start = Update(dict(parameters)).detach()

        def loss(at: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return model.loss_at(at, buffers, images, labels)

        best, least = gradient, loss(start)
        for _ in range(self.censor.tries):
            drawn = gradient.map(lambda tensor: like(tensor, self.rng, torch.randn))
            candidate = orthogonal(drawn, gradient)
            reached = loss(start.add_scaled(candidate, -self.censor.step))
            lower = reached < least  # a tensor: one for each example under DP-SGD's vmap
            best = Update({n: torch.where(lower, candidate[n], best[n]) for n in best})
            least = torch.where(lower, reached, least)
        return best

    def __repr__(self) -> str:
        return f"{self.censor!r} of {self.inner!r}"


@dataclass(frozen=True, kw_only=True)
class _Orthogonal(Wrapped):
    sent: Update

    def after(self, update: Update) -> Update:
        """The sent update, made orthogonal to this replay."""
        return orthogonal(self.sent, update)

    def __repr__(self) -> str:
        return f"what is orthogonal to {self.inner!r}"
