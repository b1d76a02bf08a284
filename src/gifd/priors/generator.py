"""Generator: an image prior as a chain of stages that can be cut anywhere."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from gifd.errors import InputError, one_line
from gifd.formats import LUMA

State = Mapping[str, Tensor]
"""Named tensors, each (B, ...), passed between stages; `x` is the main one."""

IMAGE = "x"
MOST_DOUBLINGS = 8
"""Starting from 4 x 4: generators from files make images of at most 1024 x 1024."""


class Stage(nn.Module, ABC):
    """One stage of the chain, `State -> State`.

    `searchable` names the tensors of its *output* that a feature search may optimise.
    """

    searchable: tuple[str, ...] = (IMAGE,)

    @abstractmethod
    def forward(self, state: State) -> State:
        """The state after this stage."""


@final
class Layers(Stage):
    """A stage of plain modules on `x`; the rest of the state is carried along."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, state: State) -> State:
        """`x <- body(x)`."""
        return {**state, IMAGE: self.body(state[IMAGE])}


@final
class ToUnit(nn.Module):
    """Images from [low, high] to [0, 1]."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """`(x - low) / (high - low)`."""
        return (x - self.low) / (self.high - self.low)


@final
class Area(nn.Module):
    """Images averaged down until one side is `height` or `width`, their centre cropped."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        """Each pixel is the mean over its area."""
        high, wide = x.shape[-2:]
        scale = max(self.height / high, self.width / wide)
        x = F.adaptive_avg_pool2d(x, (round(high * scale), round(wide * scale)))
        top, left = (x.shape[-2] - self.height) // 2, (x.shape[-1] - self.width) // 2
        return x[..., top : top + self.height, left : left + self.width]


@final
class Grey(nn.Module):
    """Colours as greys, as image files are read."""

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
        """The weighted mean of red, green and blue."""
        return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


Sampler = Callable[..., State]
"""Draws a latent state of `count` samples: `(count, rng) -> State`, or, for a conditional
generator, `(count, rng, labels) -> State`."""


@final
@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Standard normal latents `x`, drawn on the CPU for the same numbers on every device."""

    shape: tuple[int, ...]

    def __call__(self, count: int, rng: torch.Generator) -> State:
        """`count` latents, each of `shape`."""
        return {IMAGE: torch.randn(count, *self.shape, generator=rng)}


@final
class Generator:
    """A prior over images: a latent distribution and a chain of stages, `g = g_N ... g_1`.

    `g[:k]` and `g[k:]` are the two halves of a cut: functions from state to state with
    `g[k:](g[:k](z)) == g(z)` for every k. The last stage's state has the images (B, C, H, W) in
    [0, 1] as `x`. The stages are copied, set to eval mode and frozen.

    Args:
        stages: the chain; plain modules are stages on `x`.
        latent: draws latents; a shape means a standard normal of that shape.
        image_range: range of the last stage's output, which is mapped to [0, 1].
        searchable: the tensors of the latent state that a latent search may optimise.
        classes: number of class labels; None for an unconditional generator.
        name: for records.
        family: its architecture, by which attacks choose a paper's settings.

    Raises:
        InputError: no stage, or a chain that does not end in images.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        latent: Sampler | Sequence[int],
        image_range: tuple[float, float] = (-1.0, 1.0),
        searchable: tuple[str, ...] = (IMAGE,),
        classes: int | None = None,
        name: str = "user",
        family: str = "user",
    ) -> None:
        if not stages:
            raise InputError("expected a generator with at least one stage, got none")
        links = [s if isinstance(s, Stage) else Layers(s) for s in copy.deepcopy(list(stages))]
        low, high = image_range
        if (low, high) != (0.0, 1.0):
            links[-1] = _Then(links[-1], Layers(ToUnit(low, high)))
        for link in links:
            link.eval().requires_grad_(False)
        self.stages = tuple(links)
        self.latent: Sampler = latent if callable(latent) else Gaussian(shape=tuple(latent))
        self.searchable_latent = searchable
        self.classes, self.name, self.family = classes, name, family
        try:
            image = self.sample(1, seed=0)
        except (RuntimeError, KeyError) as error:
            reason = one_line(error)
            raise InputError(
                f"expected stages that take the latent and each other's states, got: {reason}"
            ) from None
        if image.ndim != 4:
            raise InputError(
                "expected a generator whose last stage writes images (B, C, H, W), "
                f"got a tensor of shape {tuple(image.shape)}"
            )
        if not bool(torch.isfinite(image).all()):
            raise InputError("expected a generator of finite images, got non-finite ones")
        channels, height, width = image.shape[1:]
        self.image_shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.stages)

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        return f"Generator('{self.name}', {len(self)} stages, {channels} x {height} x {width})"

    def __getitem__(self, cut: slice) -> Callable[[State], State]:
        """The stages of a slice as one function from state to state."""
        if cut.step not in (None, 1):
            raise InputError(f"expected a cut without a step, got {cut}")
        return _Chain(self.stages[cut])

    def __call__(self, state: State) -> State:
        """All stages: from a latent state to the state with the images."""
        return self[:](state)

    def weights(self) -> dict[str, Tensor]:
        """Every weight of the stages, by name."""
        return {n: p.detach() for n, p in nn.Sequential(*self.stages).named_parameters()}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Callable[[State], State]:
        """All stages as one function, with these weights instead of their own; differentiable."""
        chain = nn.Sequential(*self.stages)
        return lambda state: functional_call(chain, dict(weights), (state,))

    def searchable(self, depth: int) -> tuple[str, ...]:
        """The tensors at a cut that may be optimised; depth 0 is the latent."""
        return self.searchable_latent if depth == 0 else self.stages[depth - 1].searchable

    def draw(self, count: int, rng: torch.Generator, labels: Tensor | None = None) -> State:
        """`count` latent states, on the CPU; a conditional generator's for these class labels.

        Args:
            count: how many.
            rng: on the CPU, for the same numbers anywhere.
            labels: (count,) class indices; None draws them too. Ignored if unconditional.

        Raises:
            InputError: a label that the generator does not know.
        """
        if self.classes is None:
            return self.latent(count, rng)
        if labels is None:
            labels = torch.randint(self.classes, (count,), generator=rng)
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise InputError(
                f"expected labels of 0 to {self.classes - 1} for the prior '{self.name}', got "
                f"{sorted(set(labels.tolist()))}: choose a prior that knows the private classes"
            )
        return self.latent(count, rng, labels.cpu())

    def sample(self, count: int, seed: int, labels: Tensor | None = None) -> Float[Tensor, "B ..."]:
        """`count` samples of the prior, clipped to [0, 1]."""
        state = self.draw(count, torch.Generator().manual_seed(seed), labels)
        device = next((p.device for s in self.stages for p in s.parameters()), torch.device("cpu"))
        with torch.no_grad():
            images = self({name: tensor.to(device) for name, tensor in state.items()})[IMAGE]
        return images.clamp(0, 1)

    def averaged(self, size: int | None) -> Generator:
        """The same generator, its images averaged down to `size` x `size`; None leaves them."""
        if size is None:
            return self
        if not 1 <= size <= self.image_shape[1]:
            raise InputError(
                f"expected a size to average images of {self.image_shape[1]} pixels down to, got "
                f"{size}"
            )
        return self.framed((self.image_shape[0], size, size))

    def framed(self, shape: tuple[int, int, int]) -> Generator:
        """The same generator for images of this shape, framed as image files are when read.

        Its images are averaged down to cover the height and width, and their centre is cropped.
        Colours become greys if the shape has one channel.

        Raises:
            InputError: larger images than its own, or other channels.
        """
        channels, height, width = shape
        own = self.image_shape
        if not self.frames(shape):
            raise InputError(
                f"expected a shape within that of the images of {self}, got "
                f"{channels} x {height} x {width}"
            )
        made: list[nn.Module] = [Area(height, width)] if own[1:] != (height, width) else []
        made += [Grey()] if channels != own[0] else []
        if not made:
            return self
        framed = copy.copy(self)
        framed.stages = (*self.stages[:-1], _Then(self.stages[-1], Layers(*made)))
        framed.image_shape = (channels, height, width)
        return framed

    def frames(self, shape: tuple[int, int, int]) -> bool:
        """Whether its images are large enough for this shape, and have its channels."""
        channels, height, width = shape
        own = self.image_shape
        fewer = channels == own[0] or (channels, own[0]) == (1, 3)
        return fewer and 1 <= height <= own[1] and 1 <= width <= own[2]

    def to(self, device: torch.device | str) -> Generator:
        """A copy of the generator on `device`."""
        moved = copy.copy(self)
        moved.stages = tuple(copy.deepcopy(stage).to(device) for stage in self.stages)
        return moved


@final
class _Then(Stage):
    def __init__(self, first: Stage, second: Stage) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.searchable = first.searchable

    def forward(self, state: State) -> State:
        return self.second(self.first(state))  # type: ignore[no-any-return]


@final
@dataclass(frozen=True)
class _Chain:
    stages: tuple[Stage, ...]

    def __call__(self, state: State) -> State:
        for stage in self.stages:
            state = stage(state)
        return state
