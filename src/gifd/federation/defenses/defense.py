"""Defense: how a client hides its batch, and what an attacker replays of that."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update


class Defense(ABC):
    """Three parts: what the client does, what an attacker replays, what an attacker can guess.

    For a deterministic defence, `wrap` and `surrogate` have equal values on the private images.
    """

    inside: ClassVar[bool] = False
    """Whether it acts before the update exists: on the model, the images or each gradient."""
    looks_again: ClassVar[bool] = False
    """Whether it reads the private images after the update was computed."""

    @property
    def proves(self) -> bool:
        """Whether it guarantees privacy; then no later defence may read the images."""
        return False

    def prepare(self, model: Model, image_shape: Sequence[int]) -> Model:
        """The model that client and server agree on; most defences do not change it."""
        return model

    def drawn(self, seed: int) -> Defense:
        """The same defence for another round, if its settings contain random draws."""
        return self

    @abstractmethod
    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """What the client really computes.

        Args:
            protocol: the undefended one, or with the previous defences.
            seed: of the defence's randomness.
        """

    @abstractmethod
    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """What an attacker replays that knows this defence: differentiable, not random.

        Args:
            protocol: the undefended one, or with the previous surrogates.
            upload: its update may reveal what the defence drew.
        """

    @classmethod
    def guess(cls, upload: Upload) -> Defense | None:
        """This kind of defence with the strength that the update reveals; None: not found."""
        return None


@dataclass(frozen=True, kw_only=True)
class Wrapped(Protocol):
    """A protocol around another one. This base class changes nothing.

    Args:
        inner: the inner protocol.
    """

    inner: Protocol

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The inner update, changed by `after`."""
        return self.after(self.inner(model, parameters, buffers, images, labels))

    def after(self, update: Update) -> Update:
        """The change of the inner update."""
        return update

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """Of the inner protocol."""
        return self.inner.as_gradient(update, at)

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """Of the inner protocol."""
        return self.inner.visited(parameters, update)

    @property
    def sized(self) -> bool:
        """Of the inner protocol."""
        return self.inner.sized

    def shown(self, name: str) -> Tensor | None:
        """Of the inner protocol."""
        return self.inner.shown(name)

    def noise(self, batch: int) -> float:
        """Of the inner protocol."""
        return self.inner.noise(batch)

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` applied to the local gradients of the inner protocol."""
        return replace(self, inner=self.inner.localized(wrap))


@dataclass(frozen=True, kw_only=True)
class Local(Wrapped):
    """A protocol around one local gradient, as `localized` inserts it."""

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` applied to this one as well."""
        return wrap(self)


@dataclass(frozen=True, kw_only=True)
class Changed(Wrapped):
    """A protocol whose finished update is changed.

    Args:
        change: the update and a generator -> what is sent.
        name: for the record.
        seed: of the generator; every call draws the same.
    """

    change: Callable[[Update, torch.Generator], Update]
    name: str
    seed: int = 0

    def after(self, update: Update) -> Update:
        """The update, changed."""
        return self.change(update, torch.Generator().manual_seed(self.seed))

    def __repr__(self) -> str:
        return f"{self.inner!r} -> {self.name}"


@dataclass(frozen=True, kw_only=True)
class Masked(Wrapped):
    """A protocol whose update is partly hidden; what is hidden is zero.

    Args:
        masks: parameter name -> 1 where its update is shown, 0 where it is hidden. Parameters
            without a mask are shown completely.
        name: for the record.
    """

    masks: Mapping[str, Tensor]
    name: str

    def after(self, update: Update) -> Update:
        """The shown part of the update."""
        return Update(
            {n: t * self.masks[n] if n in self.masks else t for n, t in update.items()},
            restarts=update.restarts,
        )

    def shown(self, name: str) -> Tensor | None:
        """What neither this nor the inner protocol hides."""
        inner, own = self.inner.shown(name), self.masks.get(name)
        if inner is None or own is None:
            return inner if own is None else own
        return inner * own

    def __repr__(self) -> str:
        return f"{self.inner!r} -> {self.name}"


@dataclass(frozen=True, kw_only=True)
class Noised(Wrapped):
    """A protocol with independent noise on its update. The attacker does not replay the noise.

    Args:
        std: standard deviation, in the units of `as_gradient`.
    """

    std: float

    def noise(self, batch: int) -> float:
        """This noise and that of the inner protocol together."""
        return math.hypot(self.inner.noise(batch), self.std)

    def __repr__(self) -> str:
        return f"{self.inner!r}, noise of {self.std:.3g} on its gradient"


def check_order(defenses: object) -> None:
    """Check that the defences can be applied in this order.

    Raises:
        InputError: not a defence; one kind twice; one that acts before the update exists after one
            that acts on the update; or one that reads the images after a privacy guarantee.
    """
    if not isinstance(defenses, tuple | list) or not all(isinstance(d, Defense) for d in defenses):
        raise InputError(f"expected a tuple of defences, got {defenses!r}")
    for index, defense in enumerate(defenses):
        before = defenses[:index]
        if any(type(other) is type(defense) for other in before):
            raise InputError(f"expected each kind of defence once, got {defense} a second time")
        outside = [other for other in before if not other.inside]
        if defense.inside and outside:
            raise InputError(
                f"expected {defense}, which acts before the update is there, in front of "
                f"{outside[0]}: give it first"
            )
        proofs = [other for other in before if other.proves]
        if defense.looks_again and proofs:
            raise InputError(
                f"expected nothing behind {proofs[0]} that looks at the images again, as its proof "
                f"would be void, got {defense}: leave one of them out"
            )


def wrapped(defenses: Sequence[Defense], protocol: Protocol, seed: int) -> Protocol:
    """What a client with these defences computes. Each defence gets its own seed."""
    for index, defense in enumerate(defenses):
        protocol = defense.wrap(protocol, seed * 1000 + index)
    return protocol


def like(tensor: Tensor, rng: torch.Generator, draw: Callable[..., Tensor]) -> Tensor:
    """Random numbers with a tensor's shape, the same on every device."""
    return draw(tensor.shape, generator=rng, dtype=torch.float32).to(tensor)
