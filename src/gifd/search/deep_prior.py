"""Deep prior: images as the output of an untrained network whose weights are searched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from gifd.errors import InputError
from gifd.priors.generator import IMAGE, State
from gifd.priors.sides import base_of
from gifd.search.spaces import Draw, SearchContext, Space


@final
@dataclass(frozen=True, kw_only=True)
class DeepPrior(Space):
    """The weights of one untrained convolutional network for the whole batch.

    The network maps fixed noise, one vector per image, to images; its architecture is the
    prior. The state is the noise, (S, B, 128), and every weight, (S, 1, ...).

    Args:
        width: channels up to 32 px; half of them up to 64 px, a quarter beyond.
        noise: length of an image's noise vector.

    Source: Ulyanov et al., Deep Image Prior, CVPR 2018; the network of FedLeak's published code.

    Differs from that code: any sides that are multiples of 4 (its base is 4 px, which is doubled;
    28 px begin at 7); no spectral norm. A batch norm follows each layer, so neither the
    images nor the signs of the gradients depend on the weights' norms.
    """

    width: int = 256
    noise: int = 128

    def __post_init__(self) -> None:
        if self.width < 4 or self.noise < 1:
            raise InputError(
                f"expected width >= 4 and noise >= 1, got width={self.width}, noise={self.noise}"
            )

    @property
    def needs_prior(self) -> bool:
        """It needs no prior."""
        return False

    def start(self, context: SearchContext, draw: Draw) -> State:
        """PyTorch's initial weights and standard normal noise, separately for each restart."""
        drawn = []
        seed = int(torch.randint(2**31, (1,), generator=draw.rng))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # those of accelerators are left alone
            for _ in range(draw.restarts):
                drawn.append(dict(self._network(context).named_parameters()))
        state = {n: torch.stack([own[n].detach() for own in drawn])[:, None] for n in drawn[0]}
        shape = (draw.restarts, context.batch, self.noise)
        state[IMAGE] = torch.randn(shape, generator=draw.rng)
        like = next(iter(context.model.parameters.values()))
        return {name: tensor.to(like) for name, tensor in state.items()}

    def enter(self, context: SearchContext, origin: Space, state: State) -> State:
        """Only from a deep prior: it cannot show given images."""
        if not isinstance(origin, DeepPrior):
            raise InputError(f"expected a deep prior to begin with, got {origin} before it")
        return state

    def position(self, stages: int) -> int:
        """At the end of a generator: only pixels can follow."""
        return stages

    def searched(self, context: SearchContext) -> tuple[str, ...]:
        """Every weight."""
        return tuple(name for name, _ in self._outline(context).named_parameters())

    def images(self, context: SearchContext, state: State) -> Float[Tensor, "B C H W"]:
        """The network's images, with these weights, from the noise."""
        weights = {name: tensor[0] for name, tensor in state.items() if name != IMAGE}
        drawn: Tensor = functional_call(self._outline(context), weights, (state[IMAGE],))
        return drawn

    def _outline(self, context: SearchContext) -> nn.Module:
        """The network without weights."""
        return _outline(self.noise, self.width, *self._size(context))

    def _network(self, context: SearchContext) -> nn.Module:
        return _Network(self.noise, self.width, *self._size(context))

    def _size(self, context: SearchContext) -> tuple[int, tuple[int, int], int]:
        """Channels, the base's height and width, and the doublings from there."""
        channels, height, width = context.image_shape
        try:
            *base, doublings = base_of(height, width)
        except ValueError as error:
            raise InputError(
                f"expected images with {error} for a deep prior, got {height} x {width}: choose "
                "another attack or image size"
            ) from None
        return channels, (base[0], base[1]), doublings


@cache
def _outline(
    noise: int, width: int, channels: int, base: tuple[int, int], doublings: int
) -> nn.Module:
    """Made once: weights, even on the meta device, cannot be initialised in a vectorised call."""
    with torch.device("meta"):
        return _Network(noise, width, channels, base, doublings)


class _Network(nn.Module):
    """FedLeak's generator: a base, then nearest upsampling and two convolutions a doubling."""

    def __init__(
        self, noise: int, width: int, channels: int, base: tuple[int, int], doublings: int
    ) -> None:
        super().__init__()
        widths = [width]
        for doubling in range(doublings):
            side = 2 * max(base) << doubling
            widths.append(width if side <= 32 else width // 2 if side <= 64 else width // 4)
        self.first = nn.ConvTranspose2d(noise, width, base)
        self.norm = nn.BatchNorm2d(width, track_running_stats=False)
        self.blocks = nn.ModuleList(
            _block(i, o) for i, o in zip([width, *widths[:-1]], widths, strict=True)
        )
        self.last = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, noise: Float[Tensor, "B Z"]) -> Float[Tensor, "B C H W"]:
        """(B, Z) -> (B, C, base * 2^doublings) in [0, 1]."""
        x = F.leaky_relu(self.norm(self.first(noise[:, :, None, None])), 0.1)  # (B, width, *base)
        for index, block in enumerate(self.blocks):
            x = block(F.interpolate(x, scale_factor=2) if index else x)
        images: Tensor = self.last(x).sigmoid()
        return images


def _block(width_in: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in (width_in, width):
        layers += [
            nn.Conv2d(i, width, 3, padding=1),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)
