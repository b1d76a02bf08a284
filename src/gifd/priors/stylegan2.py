"""StyleGAN2: a mapping network, then blocks of modulated convolutions beside a skip in RGB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gifd.errors import InputError, WeightsError
from gifd.priors.generator import IMAGE, Generator, Stage, State

LatentSpace = Literal["z", "w", "w+"]
SLOPE, GAIN, EPS = 0.2, math.sqrt(2.0), 1e-8

_COPIES = ("conv0.resample_filter", "conv1.resample_filter")  # of the block's own
_OPTIONAL = ("w_avg", "resample_filter")


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate: `x W^T lr / sqrt(inputs) + b lr`."""

    def __init__(self, inputs: int, outputs: int, *, lr: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr)  # (outputs, inputs)
        self.bias = nn.Parameter(torch.full((outputs,), bias))  # (outputs,)
        self.lr, self.gain = lr, lr / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x * self.gain, self.weight, self.bias * self.lr)


class MappingNetwork(nn.Module):
    """`w = f(z)`, or f(z, label): both are normalised, then pass `layers` linear layers.

    Args:
        z, w: sizes of the latent and of the intermediate latent.
        classes: size of the one-hot label; 0 for an unconditional network.
        layers: depth.
        hidden: width between the layers; w by default.
        embedding: width of the label's embedding; w by default.
        lr: its learning rate as a share of the others', part of the weights' scale.
    """

    def __init__(
        self,
        *,
        z: int,
        w: int,
        classes: int = 0,
        layers: int = 8,
        hidden: int | None = None,
        embedding: int | None = None,
        lr: float = 0.01,
    ) -> None:
        super().__init__()
        self.z, self.w, self.classes, self.depth = z, w, classes, layers
        into = z
        if classes:
            self.embed = EqualLinear(classes, embedding or w)
            into += embedding or w
        sizes = [into, *[hidden or w] * (layers - 1), w]
        for index in range(layers):
            self.add_module(f"fc{index}", EqualLinear(sizes[index], sizes[index + 1], lr=lr))
        self.register_buffer("w_avg", torch.zeros(w))  # (w,), the mean of w while training

    def forward(self, z: Float[Tensor, "B Z"], labels: Tensor | None) -> Float[Tensor, "B W"]:
        """(B, z) and, where it is conditional, (B,) class indices -> (B, w)."""
        x = _normalize(z)
        if self.classes:
            embed = self.embed  # of a one-hot label: a row of its weights
            y = embed.weight.T[_given(labels)] * embed.gain + embed.bias * embed.lr
            x = torch.cat([x, _normalize(y)], dim=1)
        for index in range(self.depth):
            x = F.leaky_relu(self.get_submodule(f"fc{index}")(x), SLOPE) * GAIN
        return x


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style and whose output has unit norm.

    Scaling activations instead of weights gives the same numbers, needs no weights a sample,
    and the demodulation `1 / |W s|` of a whole batch is one product of matrices.
    """

    def __init__(self, inputs: int, outputs: int, size: int, w: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.affine = EqualLinear(w, inputs, bias=1.0)

    def demodulation(self, style: Float[Tensor, "B I"]) -> Float[Tensor, "B O 1 1"]:
        """`1 / sqrt(sum_(i,k) (W_oik s_i)^2 + eps)`."""
        power = style.square() @ self.weight.square().sum((2, 3)).T
        return (power + EPS).rsqrt()[..., None, None]


class SynthesisLayer(ModulatedConv):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU; `up` doubles the size.

    Args:
        inputs, outputs: channels.
        w: size of the intermediate latent.
        resolution: of the output, for the constant noise map.
        up: whether to double the size first.
        clamp: activations are kept within +-clamp, as networks trained in half precision need.
    """

    def __init__(
        self, inputs: int, outputs: int, w: int, resolution: int, *, up: bool, clamp: float | None
    ) -> None:
        super().__init__(inputs, outputs, 3, w)
        self.up, self.clamp = up, clamp
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_const: Tensor

    def forward(
        self,
        x: Float[Tensor, "B I H W"],
        w: Float[Tensor, "B D"],
        noise: Float[Tensor, "B 1 H2 W2"],
        taps: Float[Tensor, "4 4"],
    ) -> Float[Tensor, "B O H2 W2"]:
        """(B, inputs, H, W) -> (B, outputs, H, W), or twice the size."""
        style = self.affine(w)  # (B, inputs)
        x = x * style[..., None, None]
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)  # (B, O, 2H+1, 2W+1)
            x = F.conv2d(x, _each(taps * 4, x), padding=1, groups=x.shape[1])  # (B, O, 2H, 2W)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * self.demodulation(style) + noise * self.noise_strength
        x = F.leaky_relu(x + self.bias[:, None, None], SLOPE) * GAIN
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(ModulatedConv):
    """Modulated 1x1 convolution to colours, without demodulation."""

    def __init__(self, inputs: int, channels: int, w: int, *, clamp: float | None) -> None:
        super().__init__(inputs, channels, 1, w)
        self.clamp, self.gain = clamp, 1 / math.sqrt(inputs)

    def forward(
        self, x: Float[Tensor, "B I H W"], w: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B C H W"]:
        """(B, inputs, H, W) -> (B, channels, H, W)."""
        style = self.affine(w) * self.gain
        x = F.conv2d(x * style[..., None, None], self.weight, self.bias)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


@final
class SynthesisBlock(Stage):
    """One resolution: `(x, rgb, w, noise)` -> the same at twice the size.

    The first block starts from a constant and reads no `x`. Behind the last one the image is
    `x` and nothing else is left.

    Args:
        index: 0 for 4 x 4, 1 for 8 x 8, ...
        inputs, outputs: channels in front and behind; `inputs` is 0 for the first.
        channels: colours.
        w: size of the intermediate latent.
        clamp: see `SynthesisLayer`.
    """

    def __init__(
        self, index: int, inputs: int, outputs: int, channels: int, w: int, clamp: float | None
    ) -> None:
        super().__init__()
        self.index, self.last = index, False
        resolution = 4 * 2**index
        if index == 0:
            self.const = nn.Parameter(torch.randn(outputs, 4, 4))
        else:
            self.conv0 = SynthesisLayer(inputs, outputs, w, resolution, up=True, clamp=clamp)
        self.conv1 = SynthesisLayer(outputs, outputs, w, resolution, up=False, clamp=clamp)
        self.torgb = ToRGB(outputs, channels, w, clamp=clamp)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("resample_filter", torch.outer(taps, taps) / taps.sum() ** 2)
        self.resample_filter: Tensor

    def forward(self, state: State) -> State:
        """The state behind this block."""
        w, k, taps = state["w"], 2 * self.index, self.resample_filter  # (B, L, D)
        if k == 0:
            x = self.const.expand(len(w), -1, -1, -1)  # (B, C, 4, 4)
        else:
            x = self.conv0(state[IMAGE], w[:, k - 1], state[f"noise{k - 1}"], taps)
        x = self.conv1(x, w[:, k], state[f"noise{k}"], taps)
        rgb = self.torgb(x, w[:, k + 1])
        if "rgb" in state:
            skip = state["rgb"]
            rgb = rgb + F.conv_transpose2d(
                skip, _each(taps * 4, skip), stride=2, padding=1, groups=skip.shape[1]
            )
        if self.last:
            return {IMAGE: rgb}
        gone = {f"noise{k - 1}", f"noise{k}"}
        kept = {name: tensor for name, tensor in state.items() if name not in gone}
        return {**kept, IMAGE: x, "rgb": rgb}


@final
class FirstBlock(Stage):
    """From the latent to the first block's state: map z to w, or broadcast w, or take w+."""

    def __init__(
        self, space: LatentSpace, mapping: MappingNetwork | None, block: SynthesisBlock, layers: int
    ) -> None:
        super().__init__()
        self.space, self.mapping, self.block, self.layers = space, mapping, block, layers
        self.searchable = block.searchable

    def forward(self, state: State) -> State:
        """`x` is z (B, Z), w (B, D) or w+ (B, L, D); behind it `w` is (B, L, D)."""
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
    - w+: one w a layer, each `leaky_relu(m + s n)` with n standard normal: m and s are the mean
      and the standard deviation of `leaky_relu^-1(f(z))` over `SAMPLES` draws, so that w+ is
      distributed like f(z), dimension by dimension.

    Args:
        space: which of them.
        mapping: f, on the CPU.
        layers: L, how many w a w+ holds.
        noise: 'random' draws each map, 'const' takes the network's own.
        maps: the network's own noise maps, each (H, W).

    Source: Wulff and Torralba, Improving Inversion and Generation Diversity in StyleGAN using a
    Gaussianized Latent Space, 2020; GIFD's code reads m and s from a file that it does not hold.
    """

    space: LatentSpace
    mapping: MappingNetwork
    layers: int
    noise: Literal["random", "const"]
    maps: Sequence[Tensor]
    _fits: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    SAMPLES = 8192

    def __call__(self, count: int, rng: torch.Generator, labels: Tensor | None = None) -> State:
        """`count` latents as `x`, with `label` where the space is z, and `noise0`, `noise1`, ..."""
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
        """The m and s of w+, each (D,), for one class or for an unconditional network."""
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
    z: int = 512,
    w: int = 512,
    classes: int = 0,
    layers: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random weights of a StyleGAN2, named as `stylegan2` reads them: to train or to test.

    Args:
        channels: of each block, from 4 x 4 up: the images have `4 * 2**(len(channels) - 1)`.
        colours: of the images.
        z: size of the latent.
        w: size of the intermediate latent.
        classes: size of the one-hot label; 0 for an unconditional network.
        layers: depth of the mapping network.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mapping = MappingNetwork(z=z, w=w, classes=classes, layers=layers)
        blocks = _blocks(channels, colours, w, None)
    parts: dict[str, nn.Module] = {"mapping": mapping}
    parts |= {f"synthesis.b{4 * 2**i}": block for i, block in enumerate(blocks)}
    return {
        f"{part}.{name}": tensor.detach()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


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
    """A StyleGAN2 from weights named as NVIDIA's PyTorch code names them; one stage a resolution.

    Resolution, channels, depths and sizes are read off the weights. The state between stages is
    `x` (B, C, H, W), `rgb` (B, 3, H, W), `w` (B, L, D) and the noise maps still to come.

    Args:
        tensors: `mapping.*` and `synthesis.b4.*`, `synthesis.b8.*`, ...
        latent: the space that the latent is drawn from and searched in.
        noise: where the noise maps start: 'random', or the network's own ('const').
        optimise: what may be optimised beside the latent or the feature.
        resolution: stop at this resolution and answer with its `rgb`: the early exit.
        area: average the images down to this size.
        clamp: of activations, as the network was trained (256 for NVIDIA's in half precision).
        mapping_lr: the mapping network's learning rate multiplier, part of its weights' scale.
        name: for records.

    Raises:
        WeightsError: these are not the weights of a StyleGAN2 with RGB skips.
        InputError: a resolution that it does not pass, or a size its images do not divide into.

    Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        count = sum(f"synthesis.b{4 * 2**i}.conv1.weight" in shapes for i in range(12))
        channels = [shapes[f"synthesis.b{4 * 2**i}.conv1.weight"][0] for i in range(count)]
        colours = shapes["synthesis.b4.torgb.weight"][0]
        depth = sum(f"mapping.fc{i}.weight" in shapes for i in range(64))
        w, last = shapes[f"mapping.fc{depth - 1}.weight"]
        embedding, classes = shapes.get("mapping.embed.weight", (0, 0))
        z = shapes["mapping.fc0.weight"][1] - embedding
    except (KeyError, ValueError, IndexError):
        raise WeightsError(
            "expected StyleGAN2 weights (mapping.fc0.weight, synthesis.b4.conv1.weight, "
            f"synthesis.b4.torgb.weight, ...), got {sorted(shapes)[:4]}"
        ) from None
    mapping = MappingNetwork(
        z=z,
        w=w,
        classes=classes,
        layers=depth,
        hidden=last if depth > 1 else w,
        embedding=embedding or None,
        lr=mapping_lr,
    )
    blocks = _blocks(channels, colours, w, clamp)
    _load(mapping, tensors, "mapping")
    for index, block in enumerate(blocks):
        _load(block, tensors, f"synthesis.b{4 * 2**index}")
        if not torch.equal(block.resample_filter, block.resample_filter.flip(0, 1)):
            raise WeightsError("expected a symmetric resample_filter, got another: not supported")
    if resolution is not None:
        sizes = [4 * 2**i for i in range(count)]
        if resolution not in sizes:
            raise InputError(f"expected a resolution of {sizes}, got {resolution}")
        blocks = blocks[: sizes.index(resolution) + 1]
    layers = 2 * len(blocks)
    blocks[-1].last = True
    beside = ["w"] if "w" in optimise else []
    for index, block in enumerate(blocks):
        ahead = range(2 * index + 1, layers - 1) if "noise" in optimise else ()
        block.searchable = (IMAGE, *beside, *(f"noise{i}" for i in ahead))
    blocks[-1].searchable = (IMAGE,)
    first = FirstBlock(latent, mapping if latent == "z" else None, blocks[0], layers)
    maps = [
        layer.noise_const
        for block in blocks
        for layer in block.children()
        if isinstance(layer, SynthesisLayer)
    ]
    noises = [f"noise{i}" for i in range(layers - 1)] if "noise" in optimise else []
    return Generator(
        [first, *blocks[1:]],
        latent=StyleLatent(space=latent, mapping=mapping, layers=layers, noise=noise, maps=maps),
        classes=classes or None,
        searchable=(IMAGE, *noises),
        name=name,
        family="stylegan2",
    ).averaged(area)


def _blocks(
    channels: Sequence[int], colours: int, w: int, clamp: float | None
) -> list[SynthesisBlock]:
    before = [0, *channels[:-1]]
    return [
        SynthesisBlock(index, inputs, outputs, colours, w, clamp)
        for index, (inputs, outputs) in enumerate(zip(before, channels, strict=True))
    ]


def _load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The tensors under a prefix into a module."""
    own = {
        key.removeprefix(f"{prefix}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{prefix}.") and not key.endswith(_COPIES)
    }
    try:
        missing, unexpected = module.load_state_dict(own, strict=False)
        wrong = [*(key for key in missing if key not in _OPTIONAL), *unexpected]
        reason = ", ".join(f"{prefix}.{key}" for key in wrong[:4])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
    if reason:
        raise WeightsError(f"expected the weights of one StyleGAN2, got others: {reason}")


def _normalize(x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """To a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt()


def _each(taps: Float[Tensor, "4 4"], x: Tensor) -> Float[Tensor, "C 1 4 4"]:
    """The same filter for each channel of x."""
    return taps.expand(x.shape[1], 1, 4, 4)


def _given(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InputError("expected class labels for a conditional prior, got none")
    return labels
