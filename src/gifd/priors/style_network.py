"""StyleGAN2's networks: the mapping network, and blocks of modulated convolutions with RGB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gifd.errors import InputError
from gifd.priors.generator import IMAGE, Stage, State

SLOPE, GAIN, EPS = 0.2, math.sqrt(2.0), 1e-8


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, scaled to preserve the magnitude of a normal input."""
    return F.leaky_relu(x, SLOPE) * GAIN


def binomial() -> Float[Tensor, "4 4"]:
    """The filter (1, 3, 3, 1) along both axes, of sum 1, for resampling."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / taps.sum() ** 2


def each_channel(taps: Float[Tensor, "4 4"], x: Tensor) -> Float[Tensor, "C 1 4 4"]:
    """The same filter for each channel of x."""
    return taps.expand(x.shape[1], 1, 4, 4)


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
    """`w = f(z)` or `f(z, label)`: both are normalised, then mapped by `layers` linear layers.

    Args:
        z, w: sizes of the latent and of the intermediate latent.
        classes: size of the one-hot label; 0 for an unconditional network.
        layers: depth.
        hidden: width between the layers; w by default.
        embedding: width of the label's embedding; w by default.
        lr: learning rate multiplier, part of the weights' scale.
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
        self.w_avg: Tensor

    def forward(self, z: Float[Tensor, "B Z"], labels: Tensor | None) -> Float[Tensor, "B W"]:
        """(B, z) and, if it is conditional, (B,) class indices -> (B, w)."""
        x = _normalize(z)
        if self.classes:
            embed = self.embed  # of a one-hot label: a row of its weights
            y = embed.weight.T[_given(labels)] * embed.gain + embed.bias * embed.lr
            x = torch.cat([x, _normalize(y)], dim=1)
        for index in range(self.depth):
            x = activate(self.get_submodule(f"fc{index}")(x))
        return x


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style and whose output has unit norm.

    Scaling activations instead of weights gives the same numbers without weights per sample, and
    the demodulation `1 / |W s|` of a whole batch is one matrix product.
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
        clamp: clamp activations to +-clamp, for networks trained in half precision.
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
            x = F.conv2d(
                x, each_channel(taps * 4, x), padding=1, groups=x.shape[1]
            )  # (B, O, 2H, 2W)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * self.demodulation(style) + noise * self.noise_strength
        x = activate(x + self.bias[:, None, None])
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(ModulatedConv):
    """Modulated 1x1 convolution to RGB, without demodulation."""

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

    The first block starts from a constant and uses no `x`. After the last one the state is only
    the image, as `x`.

    Args:
        index: 0 for the first, ...
        resolution: side of its images.
        inputs, outputs: channels before and after; `inputs` is 0 for the first.
        channels: channels of the images.
        w: size of the intermediate latent.
        clamp: see `SynthesisLayer`.
    """

    def __init__(
        self,
        index: int,
        resolution: int,
        inputs: int,
        outputs: int,
        channels: int,
        w: int,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.index, self.last = index, False
        if index == 0:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(inputs, outputs, w, resolution, up=True, clamp=clamp)
        self.conv1 = SynthesisLayer(outputs, outputs, w, resolution, up=False, clamp=clamp)
        self.torgb = ToRGB(outputs, channels, w, clamp=clamp)
        self.register_buffer("resample_filter", binomial())
        self.resample_filter: Tensor

    def forward(self, state: State) -> State:
        """The state after this block."""
        w, k, taps = state["w"], 2 * self.index, self.resample_filter  # (B, L, D)
        if k == 0:
            x = self.const.expand(len(w), -1, -1, -1)  # (B, C, base, base)
        else:
            x = self.conv0(state[IMAGE], w[:, k - 1], state[f"noise{k - 1}"], taps)
        x = self.conv1(x, w[:, k], state[f"noise{k}"], taps)
        rgb = self.torgb(x, w[:, k + 1])
        if "rgb" in state:
            skip = state["rgb"]
            rgb = rgb + F.conv_transpose2d(
                skip, each_channel(taps * 4, skip), stride=2, padding=1, groups=skip.shape[1]
            )
        if self.last:
            return {IMAGE: rgb}
        gone = {f"noise{k - 1}", f"noise{k}"}
        kept = {name: tensor for name, tensor in state.items() if name not in gone}
        return {**kept, IMAGE: x, "rgb": rgb}


@final
class StyleNetwork(nn.Module):
    """A complete StyleGAN2 generator, with parts named as in NVIDIA's code.

    This is the network to train; `gifd.priors.stylegan2` makes a `Generator` from its
    `state_dict()`.

    Args:
        channels: of each block, from `base` up to images of side `base * 2**(len(channels) - 1)`.
        colours: channels of the images.
        base: side of the first block: 4 as in the paper, or e.g. 7 for images of 28.
        z, w, classes, layers, hidden, embedding, mapping_lr: see `MappingNetwork`.
        clamp: see `SynthesisLayer`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        colours: int = 3,
        base: int = 4,
        z: int = 512,
        w: int = 512,
        classes: int = 0,
        layers: int = 8,
        hidden: int | None = None,
        embedding: int | None = None,
        mapping_lr: float = 0.01,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.mapping = MappingNetwork(
            z=z,
            w=w,
            classes=classes,
            layers=layers,
            hidden=hidden,
            embedding=embedding,
            lr=mapping_lr,
        )
        self.synthesis = nn.Module()
        for index, (inputs, outputs) in enumerate(zip([0, *channels[:-1]], channels, strict=True)):
            side = base * 2**index
            block = SynthesisBlock(index, side, inputs, outputs, colours, w, clamp)
            self.synthesis.add_module(f"b{side}", block)
        self.blocks[-1].last = True

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """One per resolution, from the base up."""
        return [block for block in self.synthesis.children() if isinstance(block, SynthesisBlock)]

    @property
    def layers(self) -> int:
        """L, the number of styles: one per convolution, and one for the last RGB layer."""
        return 2 * len(self.blocks)

    @property
    def noise_maps(self) -> list[Tensor]:
        """The constant noise maps, each (H, W), in layer order."""
        layers = (layer for block in self.blocks for layer in block.children())
        return [layer.noise_const for layer in layers if isinstance(layer, SynthesisLayer)]

    def forward(self, w: Float[Tensor, "B L D"], noise: State) -> Float[Tensor, "B C H W"]:
        """Images, about [-1, 1], from one style per layer and the maps `noise0`, `noise1`, ..."""
        state: State = {**noise, "w": w}
        for block in self.blocks:
            state = block(state)
        return state[IMAGE]


def _normalize(x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Scale to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt()


def _given(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InputError("expected class labels for a conditional prior, got none")
    return labels
