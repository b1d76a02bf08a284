"""Search spaces: what a phase searches, from the generator's latent to the image.

States have the leading axes (S, B): S searches of B images each.
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
    """What all spaces and searches of a run share.

    Args:
        model: the victim; its normalisation defines the units of a pixel search.
        generator: the prior, if the attack has one.
        image_shape: (C, H, W) of the private images.
        batch: B, the number of private images in the update.
    """

    model: Model
    generator: Generator | None
    image_shape: Sequence[int]
    batch: int

    @property
    def prior(self) -> Generator:
        """The generator.

        Raises:
            InputError: the attack was built without a prior.
        """
        if self.generator is None:
            raise InputError("expected a prior for a latent or feature search, got none")
        return self.generator


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """How to draw random states for the restarts of one image.

    Args:
        restarts: number of states.
        rng: source of all randomness.
        labels: (R, B) the class of each image, for a conditional prior.
    """

    restarts: int
    rng: torch.Generator
    labels: Int[Tensor, "R B"] | None = None

    def of(self, numbers: Int[Tensor, "K"]) -> Draw:
        """For these restarts alone."""
        labels = None if self.labels is None else self.labels[numbers.to(self.labels.device)]
        return replace(self, restarts=len(numbers), labels=labels)


def drawn(space: Space, context: SearchContext, draws: Sequence[Draw]) -> State:
    """Random states of N images, (N, R, ...)."""
    each = [space.start(context, draw) for draw in draws]
    return {name: torch.stack([state[name] for state in each]) for name in each[0]}


class Space(ABC):
    """A space to search in."""

    @property
    def needs_prior(self) -> bool:
        """Whether it needs a generator."""
        return True

    @property
    def searches_labels(self) -> bool:
        """Whether the labels are optimised with the images."""
        return False

    @abstractmethod
    def start(self, context: SearchContext, draw: Draw) -> State:
        """Random states, for the beginning of an attack."""

    @abstractmethod
    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """The states in this space that show the same images as `state` in `origin`."""

    @abstractmethod
    def position(self, stages: int) -> int:
        """The position along a generator: 0 is the latent, k stage k, `stages + 1` the pixels."""

    @abstractmethod
    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """The names of the state's optimised tensors; the others are carried along."""

    @abstractmethod
    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """The images in [0, 1] of one search's state (B, ...); differentiable."""

    def pictures(self, context: SearchContext, state: State) -> Float[Tensor, "S B C H W"]:
        """The images of many searches' states (S, B, ...)."""
        searches = range(len(next(iter(state.values()))))
        rows = ({name: tensor[i] for name, tensor in state.items()} for i in searches)
        return torch.stack([self.images(context, row) for row in rows])

    def labels(self, state: State, known: Tensor) -> Shaped[Tensor, "B *N"]:
        """The labels of one search's replay: the known ones by default."""
        return known

    def clip(self, context: SearchContext, state: State) -> State:
        """The state clipped to the limits of the space itself."""
        return state


class _Cut(Space):
    """The generator cut after stage `depth`: only the stages after the cut are run."""

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
        """The depth of the cut; an error if the generator has fewer stages."""
        if self.depth > stages:
            raise InputError(
                f"expected a feature of at most {stages} (stages of the generator), "
                f"got {self.depth}"
            )
        return self.depth

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """The searchable tensors at the cut."""
        return context.prior.searchable(self.depth)

    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """Run the stages after the cut."""
        return context.prior[self.depth :](state)[IMAGE]

    def pictures(self, context: SearchContext, state: State) -> Float[Tensor, "S B C H W"]:
        """Run the stages after the cut, in one call."""
        shown = self.images(context, _flatten(state))  # (S * B, C, H, W)
        return shown.reshape(-1, context.batch, *shown.shape[1:])

    def _run(self, context: SearchContext, first: int, last: int, state: State) -> State:
        self.position(len(context.prior))
        with torch.no_grad():
            return context.prior[first:last](state)


@final
@dataclass(frozen=True)
class Latent(_Cut):
    """The generator's latent.

    Args:
        only: names of the tensors to search; all searchable ones by default.
    """

    only: tuple[str, ...] = ()

    depth = 0

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """The chosen tensors, or all searchable ones.

        Raises:
            InputError: a chosen tensor is not searchable.
        """
        offered = super().searched(context)
        for name in self.only:
            if name not in offered:
                raise InputError(f"expected one of {', '.join(offered)} to search, got '{name}'")
        return self.only or offered


@final
@dataclass(frozen=True)
class Feature(_Cut):
    """The feature domain after stage `depth` of the generator, `1 <= depth <= N`.

    Args:
        depth: the stage.
        drop: carried tensors to set to zero on entry, which changes the images. Only to
            reproduce code that loses them.
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
    """The generator's weights, separately for each image; the latent is fixed.

    Source: Jeon et al., Gradient Inversion with Generative Image Prior, NeurIPS 2021.
    """

    def start(self, context: SearchContext, draw: Draw) -> State:
        """Latents drawn from the prior, and the trained weights."""
        return self.enter(context, Latent(), Latent().start(context, draw))

    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """The latent, with the trained weights."""
        if not isinstance(origin, Latent):
            raise InputError(f"expected the generator's weights after its latent, got {origin}")
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
        """Each image by its own generator."""
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
    """The image itself, in the model's normalised units, clipped to valid images.

    The papers' learning rates and standard normal starts refer to these units.

    Args:
        bounded: clip after every step; otherwise only the answer is clipped.
        soft_labels: also search the labels, as logits, whose softmax the replay uses; labels that
            are numbers as these.
    """

    bounded: bool = True
    soft_labels: bool = False

    @property
    def needs_prior(self) -> bool:
        """It needs no prior."""
        return False

    @property
    def searches_labels(self) -> bool:
        """Whether they are soft."""
        return self.soft_labels

    def start(self, context: SearchContext, draw: Draw) -> State:
        """Standard normal noise, also for soft labels."""
        like = next(iter(context.model.parameters.values()))
        shape = (draw.restarts, context.batch)
        state = {IMAGE: torch.randn(*shape, *context.image_shape, generator=draw.rng).to(like)}
        if self.soft_labels:
            outputs = context.model.task(context.image_shape).outputs
            state[LABELS] = torch.randn(*shape, *outputs, generator=draw.rng).to(like)
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
        """After all stages."""
        return stages + 1

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """The pixels, and the labels if they are soft."""
        return (IMAGE, LABELS) if self.soft_labels else (IMAGE,)

    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """Undo the normalisation."""
        return context.model.denormalize(state[IMAGE])

    def pictures(self, context: SearchContext, state: State) -> Float[Tensor, "S B C H W"]:
        """Undo the normalisation."""
        return context.model.denormalize(state[IMAGE])

    def labels(self, state: State, known: Tensor) -> Shaped[Tensor, "B *N"]:
        """If they are soft, the softmax of their logits, (B, N, ...); numbers as they are."""
        if not self.soft_labels:
            return known
        return state[LABELS] if known.is_floating_point() else state[LABELS].softmax(1)

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
