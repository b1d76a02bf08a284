"""Search spaces: where along the generator, from its latent to the image, a phase searches.

States carry the axes (S, B) in front of everything: S searches of B images each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.model import Model
from gifd.priors.generator import IMAGE, Generator, State


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SearchContext:
    """What all spaces and searches of one run share.

    Args:
        model: its normalisation defines the units of a pixel search.
        generator: the prior; None where the attack has none.
        image_shape: (C, H, W) of the private images.
        batch: B, the private images in the update.
    """

    model: Model
    generator: Generator | None
    image_shape: Sequence[int]
    batch: int

    @property
    def prior(self) -> Generator:
        """The generator, where there is one.

        Raises:
            InputError: the attack was built without a prior.
        """
        if self.generator is None:
            raise InputError("expected a prior for a latent or feature search, got none")
        return self.generator


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """What random states are drawn by, for the restarts of one image.

    Args:
        restarts: how many states.
        rng: where all randomness comes from.
        labels: (R, B) the class that each image is drawn from, for a conditional prior.
    """

    restarts: int
    rng: torch.Generator
    labels: Int[Tensor, "R B"] | None = None

    def of(self, numbers: Int[Tensor, "K"]) -> Draw:
        """For these restarts alone."""
        labels = None if self.labels is None else self.labels[numbers.to(self.labels.device)]
        return replace(self, restarts=len(numbers), labels=labels)


class Space(ABC):
    """A place to search in."""

    @property
    def needs_prior(self) -> bool:
        """Whether it lies in a generator."""
        return True

    @property
    def searches_labels(self) -> bool:
        """Whether the labels are found with the images."""
        return False

    @abstractmethod
    def start(self, context: SearchContext, draw: Draw) -> State:
        """Random states to begin an attack with."""

    @abstractmethod
    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """The states in this space that show the same images as `state` of `origin`."""

    @abstractmethod
    def position(self, stages: int) -> int:
        """Where along a generator of so many stages: 0 is its latent, `stages + 1` the pixels."""

    @abstractmethod
    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """The names of the state that are optimised; the rest is carried."""

    @abstractmethod
    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """The images in [0, 1] of one search's state (B, ...); differentiable."""

    def pictures(self, context: SearchContext, state: State) -> Float[Tensor, "S B C H W"]:
        """The images of many searches' states (S, B, ...)."""
        searches = range(len(next(iter(state.values()))))
        rows = ({name: tensor[i] for name, tensor in state.items()} for i in searches)
        return torch.stack([self.images(context, row) for row in rows])

    def labels(self, state: State, known: Tensor) -> Shaped[Tensor, "B *N"]:
        """The labels that one search's state is replayed with: the known ones."""
        return known

    def clip(self, context: SearchContext, state: State) -> State:
        """The state with the limits that belong to the space itself."""
        return state


class _Cut(Space):
    """The generator cut behind its stage `depth`: what comes before is fixed, the rest is run."""

    depth: int

    def start(self, context: SearchContext, draw: Draw) -> State:
        """Latents drawn from the prior, run to the cut."""
        labels = None if draw.labels is None else draw.labels.flatten()
        drawn = context.prior.draw(draw.restarts * context.batch, draw.rng, labels)
        flat = {name: tensor.to(context.model.device) for name, tensor in drawn.items()}
        return _unflatten(self._run(context, 0, self.depth, flat), context.batch)

    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """Run the stages between the cut of `origin` and this one."""
        depth = getattr(origin, "depth", None)
        if depth is None or depth > self.depth:
            raise InputError(f"expected phases in the generator's order, got {self} after {origin}")
        return _unflatten(self._run(context, depth, self.depth, _flatten(state)), context.batch)

    def position(self, stages: int) -> int:
        """The depth of the cut; an error where the generator ends before it."""
        if self.depth > stages:
            raise InputError(
                f"expected a feature of at most {stages} (stages of the generator), "
                f"got {self.depth}"
            )
        return self.depth

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """What the stage in front of the cut offers."""
        return context.prior.searchable(self.depth)

    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """Run the stages behind the cut."""
        return context.prior[self.depth :](state)[IMAGE]

    def pictures(self, context: SearchContext, state: State) -> Float[Tensor, "S B C H W"]:
        """Run the stages behind the cut once for all."""
        shown = self.images(context, _flatten(state))  # (S * B, C, H, W)
        return shown.reshape(-1, context.batch, *shown.shape[1:])

    def _run(self, context: SearchContext, first: int, last: int, state: State) -> State:
        self.position(len(context.prior))
        with torch.no_grad():
            return context.prior[first:last](state)


@final
@dataclass(frozen=True)
class Latent(_Cut):
    """The generator's own latent.

    Args:
        only: which of its searchable tensors are searched; none named: all of them.
    """

    only: tuple[str, ...] = ()

    depth = 0

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """What the latent offers, or what of it was chosen.

        Raises:
            InputError: a choice that the latent does not offer.
        """
        offered = super().searched(context)
        for name in self.only:
            if name not in offered:
                raise InputError(f"expected one of {', '.join(offered)} to search, got '{name}'")
        return self.only or offered


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

    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """Run the stages between the cut of `origin` and this one."""
        entered = dict(super().enter(context, origin, state))
        return entered | {n: torch.zeros_like(entered[n]) for n in self.drop if n in entered}

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError(f"expected a feature depth of at least 1, got {self.depth}")


@final
@dataclass(frozen=True)
class Weights(Space):
    """The generator's own weights, for each image its own; the latent stays where it was.

    Source: Jeon et al., Gradient Inversion with Generative Image Prior, NeurIPS 2021.
    """

    def start(self, context: SearchContext, draw: Draw) -> State:
        """Latents drawn from the prior, and the weights as they were trained."""
        return self.enter(context, Latent(), Latent().start(context, draw))

    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """The latent as it is, with the weights as they were trained."""
        if not isinstance(origin, Latent):
            raise InputError(f"expected the generator's weights behind its latent, got {origin}")
        shape = next(iter(state.values())).shape[:2]
        weights = context.prior.weights().items()
        copies = {_WEIGHT + n: w.expand(*shape, *w.shape).clone() for n, w in weights}
        return {**state, **copies}

    def position(self, stages: int) -> int:
        """As deep as the generator: only the pixels can follow."""
        return stages

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """Every weight."""
        return tuple(_WEIGHT + name for name in context.prior.weights())

    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """Each image by a generator of its own."""
        shown = []
        for b in range(len(state[IMAGE])):
            own = {name: tensor[b] for name, tensor in state.items()}
            weights = {n.removeprefix(_WEIGHT): t for n, t in own.items() if n.startswith(_WEIGHT)}
            latent = {n: t[None] for n, t in own.items() if not n.startswith(_WEIGHT)}
            shown.append(context.prior.with_weights(weights)(latent)[IMAGE])
        return torch.cat(shown)


_WEIGHT = "weight:"


@final
@dataclass(frozen=True, kw_only=True)
class Pixels(Space):
    """The image itself, in the model's normalised units, clipped to what an image can be.

    In these units the papers' learning rates and starts (standard normal) are meant.

    Args:
        bounded: clip after every step; otherwise only the answer is.
        soft_labels: search the labels too, as logits whose softmax the replay is given.
    """

    bounded: bool = True
    soft_labels: bool = False

    @property
    def needs_prior(self) -> bool:
        """It needs none."""
        return False

    @property
    def searches_labels(self) -> bool:
        """Where they are soft."""
        return self.soft_labels

    def start(self, context: SearchContext, draw: Draw) -> State:
        """Standard normal noise, for the labels' logits too."""
        like = next(iter(context.model.parameters.values()))
        shape = (draw.restarts, context.batch)
        state = {IMAGE: torch.randn(*shape, *context.image_shape, generator=draw.rng).to(like)}
        if self.soft_labels:
            classes = context.model.classes(context.image_shape)
            state[LABELS] = torch.randn(*shape, classes, generator=draw.rng).to(like)
        return self.clip(context, state)

    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """The images that `state` shows."""
        if self.soft_labels and not origin.searches_labels:
            raise InputError(f"expected soft labels from the first phase on, got {origin} before")
        if isinstance(origin, Pixels):
            return state
        with torch.no_grad():
            return {IMAGE: context.model.normalize(origin.pictures(context, state))}

    def position(self, stages: int) -> int:
        """Behind all stages."""
        return stages + 1

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """Every pixel, and the labels where they are searched."""
        return (IMAGE, LABELS) if self.soft_labels else (IMAGE,)

    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """Undo the normalisation."""
        return context.model.denormalize(state[IMAGE])

    def pictures(self, context: SearchContext, state: State) -> Float[Tensor, "S B C H W"]:
        """Undo the normalisation."""
        return context.model.denormalize(state[IMAGE])

    def labels(self, state: State, known: Tensor) -> Shaped[Tensor, "B *N"]:
        """The softmax of the logits, (B, N), where they are searched."""
        return state[LABELS].softmax(-1) if self.soft_labels else known

    def clip(self, context: SearchContext, state: State) -> State:
        """Clip to images in [0, 1]."""
        if not self.bounded:
            return state
        images = context.model.denormalize(state[IMAGE]).clamp(0, 1)
        return {**state, IMAGE: context.model.normalize(images)}


LABELS = "labels"
"""The name of soft labels in a state."""


def _flatten(state: State) -> dict[str, Tensor]:
    return {name: tensor.flatten(0, 1) for name, tensor in state.items()}


def _unflatten(state: State, batch: int) -> dict[str, Tensor]:
    return {name: tensor.reshape(-1, batch, *tensor.shape[1:]) for name, tensor in state.items()}
