"""Search spaces: where along the generator, from its latent to the image, a phase searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.model import Model
from gifd.priors.generator import IMAGE, Generator, State


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What every space of one run shares.

    Args:
        model: its normalisation defines the units of a pixel search.
        generator: the prior; None where the attack has none.
        image_shape: (C, H, W) of the private images.
        batch: B, the private images in the update.
        restarts: R, how many searches run beside each other.
        rng: where all randomness comes from.
        labels: (B,) class indices of the private images, for a conditional prior.
    """

    model: Model
    generator: Generator | None
    image_shape: Sequence[int]
    batch: int
    restarts: int
    rng: torch.Generator
    labels: Tensor | None = None

    @property
    def prior(self) -> Generator:
        """The generator, where there is one.

        Raises:
            InputError: the attack was built without a prior.
        """
        if self.generator is None:
            raise InputError("expected a prior for a latent or feature search, got none")
        return self.generator


class Space(ABC):
    """A place to search in. Its states carry the axes (R, B) in front of everything."""

    @abstractmethod
    def start(self, setting: Setting) -> State:
        """A random state to begin an attack with."""

    @abstractmethod
    def enter(self, setting: Setting, origin: Space, state: State) -> State:
        """The state in this space that shows the same images as `state` of `origin`."""

    @abstractmethod
    def position(self, stages: int) -> int:
        """Where along a generator of so many stages: 0 is its latent, `stages + 1` the pixels."""

    @abstractmethod
    def searched(self, setting: Setting) -> tuple[str, ...]:
        """The names of the state that are optimised; the rest is carried."""

    @abstractmethod
    def images(self, setting: Setting, state: State) -> Float[Tensor, "B C H W"]:
        """The images in [0, 1] of one restart's state (B, ...); differentiable."""

    def clip(self, setting: Setting, state: State) -> State:
        """The state with the limits that belong to the space itself."""
        return state


class _Cut(Space):
    """The generator cut behind its stage `depth`: what comes before is fixed, the rest is run."""

    depth: int

    def start(self, setting: Setting) -> State:
        """Latents drawn from the prior, run to the cut."""
        count, labels = setting.restarts * setting.batch, setting.labels
        if labels is not None:
            labels = labels.repeat(setting.restarts)
        drawn = setting.prior.draw(count, setting.rng, labels)
        flat = {name: tensor.to(setting.model.device) for name, tensor in drawn.items()}
        return _unflatten(self._run(setting, 0, self.depth, flat), setting.batch)

    def enter(self, setting: Setting, origin: Space, state: State) -> State:
        """Run the stages between the cut of `origin` and this one."""
        depth = getattr(origin, "depth", None)
        if depth is None or depth > self.depth:
            raise InputError(f"expected phases in the generator's order, got {self} after {origin}")
        return _unflatten(self._run(setting, depth, self.depth, _flatten(state)), setting.batch)

    def position(self, stages: int) -> int:
        """The depth of the cut; an error where the generator ends before it."""
        if self.depth > stages:
            raise InputError(
                f"expected a feature of at most {stages} (stages of the generator), "
                f"got {self.depth}"
            )
        return self.depth

    def searched(self, setting: Setting) -> tuple[str, ...]:
        """What the stage in front of the cut offers."""
        return setting.prior.searchable(self.depth)

    def images(self, setting: Setting, state: State) -> Float[Tensor, "B C H W"]:
        """Run the stages behind the cut."""
        return setting.prior[self.depth :](state)[IMAGE]

    def _run(self, setting: Setting, first: int, last: int, state: State) -> State:
        self.position(len(setting.prior))
        with torch.no_grad():
            return setting.prior[first:last](state)


@final
@dataclass(frozen=True)
class Latent(_Cut):
    """The generator's own latent."""

    depth = 0


@final
@dataclass(frozen=True)
class Feature(_Cut):
    """The feature domain behind stage `depth` of the generator, `1 <= depth <= N`.

    Args:
        depth: the stage.
        drop: what of the carried state is lost on entry, set to zero. Nothing, unless a code
            that loses it is to be reproduced; the images jump then.
    """

    depth: int
    drop: tuple[str, ...] = ()

    def enter(self, setting: Setting, origin: Space, state: State) -> State:
        """Run the stages between the cut of `origin` and this one."""
        entered = dict(super().enter(setting, origin, state))
        return entered | {n: torch.zeros_like(entered[n]) for n in self.drop if n in entered}

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError(f"expected a feature depth of at least 1, got {self.depth}")


@final
@dataclass(frozen=True)
class Pixels(Space):
    """The image itself, in the model's normalised units, clipped to what an image can be.

    In these units the papers' learning rates and starts (standard normal) are meant.
    """

    def start(self, setting: Setting) -> State:
        """Standard normal noise."""
        shape = (setting.restarts, setting.batch, *setting.image_shape)
        noise = torch.randn(shape, generator=setting.rng).to(setting.model.device)
        return self.clip(setting, {IMAGE: noise})

    def enter(self, setting: Setting, origin: Space, state: State) -> State:
        """The images that `state` shows."""
        if isinstance(origin, Pixels):
            return state
        with torch.no_grad():
            images = origin.images(setting, _flatten(state))
        return _unflatten({IMAGE: setting.model.normalize(images)}, setting.batch)

    def position(self, stages: int) -> int:
        """Behind all stages."""
        return stages + 1

    def searched(self, setting: Setting) -> tuple[str, ...]:
        """Every pixel."""
        return (IMAGE,)

    def images(self, setting: Setting, state: State) -> Float[Tensor, "B C H W"]:
        """Undo the normalisation."""
        return setting.model.denormalize(state[IMAGE])

    def clip(self, setting: Setting, state: State) -> State:
        """Clip to images in [0, 1]."""
        images = setting.model.denormalize(state[IMAGE]).clamp(0, 1)
        return {IMAGE: setting.model.normalize(images)}


def _flatten(state: State) -> dict[str, Tensor]:
    return {name: tensor.flatten(0, 1) for name, tensor in state.items()}


def _unflatten(state: State, batch: int) -> dict[str, Tensor]:
    return {name: tensor.reshape(-1, batch, *tensor.shape[1:]) for name, tensor in state.items()}
