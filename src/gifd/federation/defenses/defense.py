"""Defense: what a client does to hide its batch, and what an attacker makes of that."""

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
    """A triple: what the client does, what an attacker believes, what an attacker can guess.

    A deterministic defence's `wrap` and `surrogate` agree in value on the private images.
    """

    inside: ClassVar[bool] = False
    """Whether it acts before the update is there: on the model, the images or each gradient."""
    looks_again: ClassVar[bool] = False
    """Whether it looks at the private images when the update is there."""

    @property
    def proves(self) -> bool:
        """Whether it proves what the update can tell: what comes behind may not look again."""
        return False

    def prepare(self, model: Model, image_shape: Sequence[int]) -> Model:
        """The model that client and server agree on; most defences leave it as it is."""
        return model

    def drawn(self, seed: int) -> Defense:
        """The same defence for another round, where what it draws is among its settings."""
        return self

    @abstractmethod
    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """What the client really computes.

        Args:
            protocol: undefended, or with the defences before this one.
            seed: of the defence's randomness.
        """

    @abstractmethod
    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """What an attacker replays who knows of this defence: differentiable, no randomness.

        Args:
            protocol: undefended, or with the surrogates before this one.
            upload: its update may show what the defence drew.
        """

    @classmethod
    def guess(cls, upload: Upload) -> Defense | None:
        """This kind of defence at the strength that the update shows; None: it shows none."""
        return None


@dataclass(frozen=True, kw_only=True)
class Wrapped(Protocol):
    """A protocol around another; by itself it changes nothing.

    Args:
        inner: the other.
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
        """The other's update, as `after` leaves it."""
        return self.after(self.inner(model, parameters, buffers, images, labels))

    def after(self, update: Update) -> Update:
        """What becomes of the other's update."""
        return update

    def as_gradient(self, update: Update) -> Update:
        """As the other has it."""
        return self.inner.as_gradient(update)

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """As the other has it."""
        return self.inner.visited(parameters, update)

    def shown(self, name: str) -> Tensor | None:
        """As the other has it."""
        return self.inner.shown(name)

    def noise(self, batch: int) -> float:
        """As the other has it."""
        return self.inner.noise(batch)

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """Around the other's local gradients."""
        return replace(self, inner=self.inner.localized(wrap))


@dataclass(frozen=True, kw_only=True)
class Local(Wrapped):
    """A protocol around one local gradient: what `localized` puts in its place."""

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """Around this too."""
        return wrap(self)


@dataclass(frozen=True, kw_only=True)
class Changed(Wrapped):
    """A protocol whose finished update is changed.

    Args:
        change: the update, and a source of randomness -> what is sent.
        name: for the record.
        seed: of that randomness; every call draws the same.
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
    """A protocol of whose update only a part is seen; the rest is zero.

    Args:
        masks: parameter name -> 1 where its update is seen, 0 where not; others are seen whole.
        name: for the record.
    """

    masks: Mapping[str, Tensor]
    name: str

    def after(self, update: Update) -> Update:
        """The update where it is seen."""
        return Update(
            {n: t * self.masks[n] if n in self.masks else t for n, t in update.items()},
            restarts=update.restarts,
        )

    def shown(self, name: str) -> Tensor | None:
        """What neither this nor the other hides."""
        inner, own = self.inner.shown(name), self.masks.get(name)
        if inner is None or own is None:
            return inner if own is None else own
        return inner * own

    def __repr__(self) -> str:
        return f"{self.inner!r} -> {self.name}"


@dataclass(frozen=True, kw_only=True)
class Noised(Wrapped):
    """A protocol on whose update independent noise lies: known of and not replayed.

    Args:
        std: its standard deviation, in the units of `as_gradient`.
    """

    std: float

    def noise(self, batch: int) -> float:
        """Both this and the other's."""
        return math.hypot(self.inner.noise(batch), self.std)

    def __repr__(self) -> str:
        return f"{self.inner!r}, noise of {self.std:.3g} on its gradient"


def check_order(defenses: object) -> None:
    """Refuse defences that cannot follow each other.

    Raises:
        InputError: one kind twice, one that acts inside the computation behind one that acts
            on what came out of it, or one that looks at the images again behind a proof; or
            something that is no defence.
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
    """What a client with these defences computes, each with a seed of its own."""
    for index, defense in enumerate(defenses):
        protocol = defense.wrap(protocol, seed * 1000 + index)
    return protocol


def like(tensor: Tensor, rng: torch.Generator, draw: Callable[..., Tensor]) -> Tensor:
    """Random numbers of a tensor's shape, the same on every device."""
    return draw(tensor.shape, generator=rng, dtype=torch.float32).to(tensor)
