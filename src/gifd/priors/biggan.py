"""BigGAN-deep: a class-conditional latent grown to an image by residual blocks and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gifd.errors import InputError, WeightsError
from gifd.priors.generator import IMAGE, Generator, Stage, State

EPS = 1e-4


class Statistics(nn.Module):
    """Batch statistics recorded at truncations 0, 1/(n-1), ... 1, and `mean` and `inverse` of one.

    Between two records the reference weighs the *farther* one more (`coef * first + (1 - coef) *
    second`, with coef the distance from the first); so does this, for the same images.
    """

    def __init__(self, channels: int, records: int) -> None:
        super().__init__()
        self.register_buffer("running_means", torch.zeros(records, channels))
        self.register_buffer("running_vars", torch.ones(records, channels))
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("inverse", torch.ones(channels), persistent=False)
        self.running_means: Tensor
        self.running_vars: Tensor
        self.mean: Tensor
        self.inverse: Tensor

    def read(self, truncation: float, eps: float) -> None:
        """Take mean and 1 / standard deviation at the truncation."""
        share, whole = math.modf(truncation / (1.0 / (len(self.running_means) - 1)))
        first = int(whole)
        mean, var = self.running_means[first], self.running_vars[first]
        if share:
            mean = mean * share + self.running_means[first + 1] * (1 - share)
            var = var * share + self.running_vars[first + 1] * (1 - share)
        self.mean, self.inverse = mean.clone(), (var + eps).rsqrt()


@final
class ConditionalNorm(Statistics):
    """Batch norm with recorded statistics; gain and bias come from the condition."""

    def __init__(self, channels: int, condition: int, records: int) -> None:
        super().__init__(channels, records)
        self.scale = nn.Linear(condition, channels, bias=False)
        self.offset = nn.Linear(condition, channels, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"], cond: Float[Tensor, "B D"]) -> Tensor:
        """`(x - mean) / std * (1 + scale(cond)) + offset(cond)`."""
        gain: Tensor = (1 + self.scale(cond)) * self.inverse  # (B, C)
        bias: Tensor = self.offset(cond) - self.mean * gain
        return x * gain[..., None, None] + bias[..., None, None]


@final
class Norm(Statistics):
    """Batch norm with recorded statistics and its own gain and bias."""

    def __init__(self, channels: int, records: int) -> None:
        super().__init__(channels, records)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """`(x - mean) / std * weight + bias`."""
        gain = self.weight * self.inverse
        return x * gain[:, None, None] + (self.bias - self.mean * gain)[:, None, None]


@final
class ResidualBlock(nn.Module):
    """Norm, ReLU, convolution, four times, through a bottleneck; the shortcut drops channels.

    Args:
        inputs, outputs: channels; half as many behind where they differ.
        condition: size of the condition.
        up: whether the image doubles in size.
        records: of the statistics.
    """

    def __init__(self, inputs: int, outputs: int, condition: int, *, up: bool, records: int):
        super().__init__()
        middle = inputs // 4
        self.up, self.outputs = up, outputs
        self.bn_0 = ConditionalNorm(inputs, condition, records)
        self.conv_0 = nn.Conv2d(inputs, middle, 1)
        self.bn_1 = ConditionalNorm(middle, condition, records)
        self.conv_1 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_2 = ConditionalNorm(middle, condition, records)
        self.conv_2 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_3 = ConditionalNorm(middle, condition, records)
        self.conv_3 = nn.Conv2d(middle, outputs, 1)

    def forward(self, x: Float[Tensor, "B I H W"], cond: Tensor) -> Float[Tensor, "B O H2 W2"]:
        """(B, inputs, H, W) -> (B, outputs, H, W), or twice the size."""
        h = self.conv_0(F.relu(self.bn_0(x, cond)))  # (B, I / 4, H, W)
        h = F.relu(self.bn_1(h, cond))
        x = x[:, : self.outputs]
        if self.up:
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self.conv_2(F.relu(self.bn_2(self.conv_1(h), cond)))
        return x + self.conv_3(F.relu(self.bn_3(h, cond)))  # type: ignore[no-any-return]


@final
class SelfAttention(nn.Module):
    """Every place looks at every 2 x 2 patch: `x + gamma o(softmax(theta' phi) g)`.

    Source: Zhang et al., Self-Attention Generative Adversarial Networks, ICML 2019.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.snconv1x1_theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.snconv1x1_o_conv = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "B C H W"], cond: Tensor) -> Float[Tensor, "B C H W"]:
        """The same shape; the condition is not read."""
        theta = self.snconv1x1_theta(x).flatten(2)  # (B, C/8, HW)
        phi = F.max_pool2d(self.snconv1x1_phi(x), 2).flatten(2)  # (B, C/8, HW/4)
        g = F.max_pool2d(self.snconv1x1_g(x), 2).flatten(2)  # (B, C/2, HW/4)
        attention = (theta.transpose(1, 2) @ phi).softmax(-1)  # (B, HW, HW/4)
        seen = (g @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])  # (B, C/2, H, W)
        return x + self.gamma * self.snconv1x1_o_conv(seen)  # type: ignore[no-any-return]


@final
class Layer(Stage):
    """One of BigGAN's layers, `(x, cond)` -> `(x, cond)`."""

    def __init__(self, body: ResidualBlock | SelfAttention) -> None:
        super().__init__()
        self.body = body

    def forward(self, state: State) -> State:
        """The state behind it."""
        return {**state, IMAGE: self.body(state[IMAGE], state["cond"])}


@final
class FirstLayer(Stage):
    """From `x` = z (B, Z) and `label` (B,) to the first layer's state."""

    def __init__(self, embeddings: nn.Linear, gen_z: nn.Linear, layer: Layer) -> None:
        super().__init__()
        self.embeddings, self.gen_z, self.layer = embeddings, gen_z, layer

    def forward(self, state: State) -> State:
        """`cond` is z beside the class's embedding, (B, Z + E)."""
        embedded = self.embeddings.weight.T[state["label"]]  # (B, E)
        cond = torch.cat([state[IMAGE], embedded], dim=1)
        x = self.gen_z(cond).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # (B, C, 4, 4)
        return self.layer({IMAGE: x, "cond": cond})  # type: ignore[no-any-return]


@final
class LastLayer(Stage):
    """The last layer, then norm, ReLU, convolution and tanh: behind it `x` are images.

    Of the convolution's channels only the first three are colours.
    """

    def __init__(self, layer: Layer, bn: Norm, conv_to_rgb: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.bn = layer, bn
        self.to_rgb = nn.Conv2d(conv_to_rgb.in_channels, 3, 3, padding=1)
        state = {name: tensor[:3] for name, tensor in conv_to_rgb.state_dict().items()}
        self.to_rgb.load_state_dict(state)

    def forward(self, state: State) -> State:
        """Images in [-1, 1]."""
        return {IMAGE: self.to_rgb(F.relu(self.bn(self.layer(state)[IMAGE]))).tanh()}


def _named(
    embeddings: nn.Linear,
    gen_z: nn.Linear,
    bodies: Sequence[ResidualBlock | SelfAttention],
    bn: Norm,
    conv_to_rgb: nn.Conv2d,
) -> nn.ModuleDict:
    """The parts under the checkpoint's names."""
    layers = nn.ModuleList(bodies)
    top = {"gen_z": gen_z, "layers": layers, "bn": bn, "conv_to_rgb": conv_to_rgb}
    return nn.ModuleDict({"embeddings": embeddings, "generator": nn.ModuleDict(top)})


@final
@dataclass(frozen=True, kw_only=True)
class ClassLatent:
    """Draws `x` = z, standard normal, beside the `label`.

    Below a truncation of 1, z is drawn within two standard deviations and scaled by it, as
    BigGAN's authors do.

    Args:
        size: of z.
        truncation: in (0, 1].
    """

    size: int
    truncation: float

    def __call__(self, count: int, rng: torch.Generator, labels: Tensor) -> State:
        """`count` latents."""
        z = torch.empty(count, self.size)
        if self.truncation < 1:
            nn.init.trunc_normal_(z, a=-2.0, b=2.0, generator=rng)
        else:
            nn.init.normal_(z, generator=rng)
        return {IMAGE: z * self.truncation, "label": labels}


def biggan(
    tensors: Mapping[str, Tensor],
    *,
    truncation: float = 1.0,
    upsample: Sequence[bool] | None = None,
    eps: float = EPS,
    area: int | None = None,
    name: str = "biggan-deep",
) -> Generator:
    """A BigGAN-deep from weights named as Hugging Face's PyTorch code names them.

    Sizes, depth and the place of the attention are read off the weights. One stage a layer,
    counting the attention: 11, 13 and 15 for 128, 256 and 512 px. The state between stages is
    `x` (B, C, H, W) and the condition `cond` (B, Z + E). Spectral norm (`weight_orig`,
    `weight_u`, `weight_v`) is folded into plain weights.

    Args:
        tensors: `embeddings.weight`, `generator.gen_z.*`, `generator.layers.*`, ...
        truncation: in (0, 1]; chooses the recorded statistics and narrows z.
        upsample: which residual blocks double the size; by default every second one.
        eps: of the norms.
        area: average the images down to this size.
        name: for records.

    Raises:
        WeightsError: these are not the weights of a BigGAN-deep.
        InputError: a truncation outside (0, 1].

    Source: Brock et al., Large Scale GAN Training for High Fidelity Natural Image Synthesis,
    ICLR 2019.
    """
    if not 0 < truncation <= 1:
        raise InputError(f"expected a truncation in (0, 1], got {truncation}")
    tensors = fold_spectral_norm(tensors)
    try:
        embedded, classes = tensors["embeddings.weight"].shape
        first, condition = tensors["generator.gen_z.weight"].shape
        records, narrow = tensors["generator.bn.running_means"].shape
        colours = tensors["generator.conv_to_rgb.weight"].shape[0]
        depth = 1 + max(
            int(key.split(".")[2]) for key in tensors if key.startswith("generator.layers.")
        )
        bodies: list[ResidualBlock | SelfAttention] = []
        blocks = 0
        for index in range(depth):
            here = f"generator.layers.{index}"
            if f"{here}.gamma" in tensors:
                bodies.append(SelfAttention(tensors[f"{here}.snconv1x1_theta.weight"].shape[1]))
                continue
            up = bool(blocks % 2) if upsample is None else upsample[blocks]
            outputs, inputs = (
                tensors[f"{here}.conv_3.weight"].shape[0],
                tensors[f"{here}.conv_0.weight"].shape[1],
            )
            bodies.append(ResidualBlock(inputs, outputs, condition, up=up, records=records))
            blocks += 1
    except (KeyError, ValueError, IndexError):
        raise WeightsError(
            "expected BigGAN-deep weights (embeddings.weight, generator.gen_z.weight, "
            f"generator.layers.0.conv_0.weight, ...), got {sorted(tensors)[:4]}"
        ) from None
    embeddings = nn.Linear(classes, embedded, bias=False)
    gen_z = nn.Linear(condition, first)
    bn = Norm(narrow, records)
    conv_to_rgb = nn.Conv2d(narrow, colours, 3, padding=1)
    parts = _named(embeddings, gen_z, bodies, bn, conv_to_rgb)
    try:
        parts.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"expected the weights of one BigGAN-deep, got others: {reason}"
        ) from None
    for module in parts.modules():
        if isinstance(module, Statistics):
            module.read(truncation, eps)
    layers = [Layer(body) for body in bodies]
    stages: list[Stage] = [FirstLayer(embeddings, gen_z, layers[0]), *layers[1:]]
    stages[-1] = LastLayer(layers[-1], bn, conv_to_rgb)
    return Generator(
        stages,
        latent=ClassLatent(size=condition - embedded, truncation=truncation),
        classes=classes,
        name=name,
        family="biggan-deep",
    ).averaged(area)


_LAYERS = {
    128: "16 16 16 16 8 8 4 4 2 2 1",
    256: "16 16 16 16 8 8 8 8 4 4 2 2 1",
    512: "16 16 16 16 8 8 8 8 4 4 2 2 1 1 1",
}
"""Channels from block to block, in multiples of the width."""


def biggan_tensors(
    resolution: int, *, width: int = 128, z: int = 128, classes: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights of an official BigGAN-deep, named as `biggan` reads them.

    Args:
        resolution: 128, 256 or 512.
        width: channels of the last block.
        z: size of the latent, and of a class's embedding.
        classes: how many.
        seed: of the weights.

    Raises:
        InputError: another resolution.
    """
    if resolution not in _LAYERS:
        raise InputError(f"expected a resolution of {list(_LAYERS)}, got {resolution}")
    channels = [width * int(n) for n in _LAYERS[resolution].split()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bodies: list[ResidualBlock | SelfAttention] = []
        for index, (inputs, outputs) in enumerate(pairwise(channels)):
            if index == 8:
                bodies.append(SelfAttention(inputs))
            up = bool(index % 2)
            bodies.append(ResidualBlock(inputs, outputs, 2 * z, up=up, records=51))
        parts = _named(
            nn.Linear(classes, z, bias=False),
            nn.Linear(2 * z, 16 * channels[0]),
            bodies,
            Norm(channels[-1], 51),
            nn.Conv2d(channels[-1], channels[-1], 3, padding=1),
        )
    return {name: tensor.detach() for name, tensor in parts.state_dict().items()}


def fold_spectral_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights, `W / (u' W v)`, in place of `weight_orig`, `weight_u` and `weight_v`.

    Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018;
    u and v are the stored ones, as `torch.nn.utils.spectral_norm` uses them in eval mode.
    """
    folded = {}
    for key, tensor in tensors.items():
        if key.endswith("weight_orig"):
            stem = key.removesuffix("_orig")
            try:
                u, v = tensors[f"{stem}_u"], tensors[f"{stem}_v"]
                sigma = torch.dot(u, torch.mv(tensor.flatten(1), v))
            except (KeyError, RuntimeError):
                raise WeightsError(
                    f"expected {stem}_u and {stem}_v that fit {key}, got none or others"
                ) from None
            folded[stem] = tensor / sigma
        elif not key.endswith(("weight_u", "weight_v")):
            folded[key] = tensor
    return folded
