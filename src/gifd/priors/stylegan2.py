"""StyleGAN2 as a chain of stages: its latent spaces, and the generator from its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from gifd.errors import InputError, WeightsError
from gifd.priors.generator import IMAGE, Generator, Stage, State
from gifd.priors.loading import load_weights
from gifd.priors.style_network import SLOPE, MappingNetwork, StyleNetwork, SynthesisBlock

LatentSpace = Literal["z", "w", "w+"]
_COPIES = ("conv0.resample_filter", "conv1.resample_filter")  # of the block's own
_OPTIONAL = ("w_avg", "resample_filter")
_LARGEST = 8192


@final
class FirstBlock(Stage):
    """From the latent to the first block's state: map z to w, broadcast w, or use w+."""

    def __init__(
        self, space: LatentSpace, mapping: MappingNetwork | None, block: SynthesisBlock, layers: int
    ) -> None:
        super().__init__()
        self.space, self.mapping, self.block, self.layers = space, mapping, block, layers
        self.searchable = block.searchable

    def forward(self, state: State) -> State:
        """In: `x` is z (B, Z), w (B, D) or w+ (B, L, D). Out: `w` is (B, L, D)."""
        w = state[IMAGE]
        if self.mapping is not None:
            w = self.mapping(w, state.get("label"))
        if self.space != "w+":
            w = w[:, None].expand(-1, self.layers, -1)
        rest = {name: tensor for name, tensor in state.items() if name not in (IMAGE, "label")}
        return self.block({**rest, "w": w})  # type: ignore[no-any-return]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StyleLatent:
    """Draws latents of one of StyleGAN2's spaces, and the noise maps.

    - z: standard normal.
    - w: `f(z)`.
    - w+: one w per layer, each `leaky_relu(m + s n)` with n standard normal. m and s are the mean
      and the standard deviation of `leaky_relu^-1(f(z))` over `SAMPLES` draws, so that each
      dimension of w+ is distributed like f(z).

    Args:
        space: z, w or w+.
        mapping: f, on the CPU.
        layers: L, the number of w in a w+.
        noise: 'random' draws each map, 'const' uses the network's own.
        maps: the network's own noise maps, each (H, W).

    Source: Wulff and Torralba, Improving Inversion and Generation Diversity in StyleGAN using a
    Gaussianized Latent Space, 2020; GIFD's code reads m and s from a file that is not published.
    """

    space: LatentSpace
    mapping: MappingNetwork
    layers: int
    noise: Literal["random", "const"]
    maps: Sequence[Tensor]
    _fits: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    SAMPLES = 8192

    def __call__(self, count: int, rng: torch.Generator, labels: Tensor | None = None) -> State:
        """`count` latents as `x`, with `label` if the space is z, and `noise0`, `noise1`, ..."""
        state = self._latent(count, rng, labels)
        for index, own in enumerate(self.maps):
            shape = (count, 1, *own.shape)
            if self.noise == "random":
                state[f"noise{index}"] = torch.randn(shape, generator=rng)
            else:
                state[f"noise{index}"] = own.expand(shape).clone()
        return state

    @torch.no_grad()
    def _latent(self, count: int, rng: torch.Generator, labels: Tensor | None) -> dict[str, Tensor]:
        if self.space == "w+":
            n = torch.randn(count, self.layers, self.mapping.w, generator=rng)
            each = [None] * count if labels is None else labels.tolist()
            fits = [self.fit(label) for label in each]
            mean, std = (torch.stack(part)[:, None] for part in zip(*fits, strict=True))
            return {IMAGE: F.leaky_relu(mean + std * n, SLOPE)}
        z = torch.randn(count, self.mapping.z, generator=rng)
        if self.space == "w":
            return {IMAGE: self.mapping(z, labels)}
        return {IMAGE: z} if labels is None else {IMAGE: z, "label": labels}

    @torch.no_grad()
    def fit(self, label: int | None) -> tuple[Tensor, Tensor]:
        """The m and s of w+, each (D,), for a class or for an unconditional network."""
        if label not in self._fits:
            z = torch.randn(
                self.SAMPLES, self.mapping.z, generator=torch.Generator().manual_seed(0)
            )
            labels = None if label is None else torch.full((self.SAMPLES,), label)
            before = F.leaky_relu(self.mapping(z, labels), 1 / SLOPE)
            self._fits[label] = (before.mean(0), before.std(0))
        return self._fits[label]


def stylegan2_tensors(
    channels: Sequence[int],
    *,
    colours: int = 3,
    base: int = 4,
    z: int = 512,
    w: int = 512,
    classes: int = 0,
    layers: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random weights of a StyleGAN2, named as for `stylegan2`, to train or to test.

    Args:
        channels: of each block, from `base` up to images of side `base * 2**(len(channels) - 1)`.
        colours: channels of the images.
        base: side of the first block.
        z: size of the latent.
        w: size of the intermediate latent.
        classes: size of the one-hot label; 0 for an unconditional network.
        layers: depth of the mapping network.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = StyleNetwork(
            channels, colours=colours, base=base, z=z, w=w, classes=classes, layers=layers
        )
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def stylegan2(
    tensors: Mapping[str, Tensor],
    *,
    latent: LatentSpace = "w+",
    noise: Literal["random", "const"] = "random",
    optimise: Sequence[Literal["w", "noise"]] = ("w", "noise"),
    resolution: int | None = None,
    area: int | None = None,
    clamp: float | None = None,
    mapping_lr: float = 0.01,
    name: str = "stylegan2",
) -> Generator:
    """A StyleGAN2 from weights named as in NVIDIA's PyTorch code; one stage per resolution.

    Resolutions, channels, depths and sizes are inferred from the weights. The state between stages
    is `x` (B, C, H, W), `rgb` (B, 3, H, W), `w` (B, L, D) and the remaining noise maps.

    Args:
        tensors: `mapping.*` and `synthesis.b4.*`, `synthesis.b8.*`, ...; a base other than 4 has
            its own names, such as `synthesis.b7.*`.
        latent: the space that the latent is drawn from and searched in.
        noise: initial noise maps: 'random', or the network's own ('const').
        optimise: what may be optimised in addition to the latent or the feature.
        resolution: early exit: stop at this resolution and use its `rgb` as the image.
        area: average the images down to this size.
        clamp: of activations, as in training (256 for NVIDIA's in half precision).
        mapping_lr: the mapping network's learning rate multiplier, part of its weights' scale.
        name: for records.

    Raises:
        WeightsError: not the weights of a StyleGAN2 with RGB skips.
        InputError: a resolution that it does not have, or a size that its images do not divide
            into.

    Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        base = _base(shapes)
        sides = [base * 2**i for i in range(12) if base * 2**i <= _LARGEST]
        sides = [side for side in sides if f"synthesis.b{side}.conv1.weight" in shapes]
        channels = [shapes[f"synthesis.b{side}.conv1.weight"][0] for side in sides]
        colours = shapes[f"synthesis.b{base}.torgb.weight"][0]
        depth = sum(f"mapping.fc{i}.weight" in shapes for i in range(64))
        w, last = shapes[f"mapping.fc{depth - 1}.weight"]
        embedding, classes = shapes.get("mapping.embed.weight", (0, 0))
        z = shapes["mapping.fc0.weight"][1] - embedding
    except (KeyError, ValueError, IndexError):
        raise WeightsError(
            "expected StyleGAN2 weights (mapping.fc0.weight, synthesis.b4.conv1.weight, "
            f"synthesis.b4.torgb.weight, ...), got {sorted(shapes)[:4]}"
        ) from None
    build = partial(
        StyleNetwork,
        channels,
        colours=colours,
        base=base,
        z=z,
        w=w,
        classes=classes,
        layers=depth,
        hidden=last if depth > 1 else w,
        embedding=embedding or None,
        mapping_lr=mapping_lr,
        clamp=clamp,
    )
    own = {key: tensor for key, tensor in tensors.items() if not key.endswith(_COPIES)}
    network = load_weights(build, own, "StyleGAN2", _OPTIONAL)
    for block in network.blocks:
        if not torch.equal(block.resample_filter, block.resample_filter.flip(0, 1)):
            raise WeightsError("expected a symmetric resample_filter, got another: not supported")
    blocks, maps = network.blocks, network.noise_maps
    if resolution is not None:
        if resolution not in sides:
            raise InputError(f"expected a resolution of {sides}, got {resolution}")
        blocks = blocks[: sides.index(resolution) + 1]
    layers = 2 * len(blocks)
    blocks[-1].last = True
    beside = ["w"] if "w" in optimise else []
    for index, block in enumerate(blocks):
        ahead = range(2 * index + 1, layers - 1) if "noise" in optimise else ()
        block.searchable = (IMAGE, *beside, *(f"noise{i}" for i in ahead))
    blocks[-1].searchable = (IMAGE,)
    mapping = network.mapping
    first = FirstBlock(latent, mapping if latent == "z" else None, blocks[0], layers)
    noises = [f"noise{i}" for i in range(layers - 1)]
    return Generator(
        [first, *blocks[1:]],
        latent=StyleLatent(
            space=latent, mapping=mapping, layers=layers, noise=noise, maps=maps[: len(noises)]
        ),
        classes=classes or None,
        searchable=(IMAGE, *(noises if "noise" in optimise else ())),
        name=name,
        family="stylegan2",
    ).averaged(area)


def _base(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The side of the first block, which is in the name of its constant.

    Raises:
        ValueError: not one constant, or of another shape than its name says.
    """
    named = (re.fullmatch(r"synthesis\.b(\d{1,4})\.const", key) for key in shapes)
    (found,) = (match for match in named if match)
    base = int(found[1])
    if base < 1 or shapes[found[0]][1:] != (base, base):
        raise ValueError(f"{found[0]} of shape {shapes[found[0]]}")
    return base
