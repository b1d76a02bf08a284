"""BigGAN-deep as a chain of stages: its latent, and the generator from its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifd.errors import InputError, WeightsError, one_line
from gifd.priors.big_network import Norm, ResidualBlock, SelfAttention, Statistics
from gifd.priors.generator import IMAGE, MOST_DOUBLINGS, Generator, Stage, State
from gifd.priors.loading import load_weights

EPS = 1e-4


@final
class Layer(Stage):
    """One of BigGAN's layers, `(x, cond)` -> `(x, cond)`."""

    def __init__(self, body: ResidualBlock | SelfAttention) -> None:
        super().__init__()
        self.body = body

    def forward(self, state: State) -> State:
        """The state after it."""
        return {**state, IMAGE: self.body(state[IMAGE], state["cond"])}


@final
class FirstLayer(Stage):
    """From `x` = z (B, Z) and `label` (B,) to the first layer's state."""

    def __init__(self, embeddings: nn.Linear, gen_z: nn.Linear, layer: Layer) -> None:
        super().__init__()
        self.embeddings, self.gen_z, self.layer = embeddings, gen_z, layer

    def forward(self, state: State) -> State:
        """`cond` is z concatenated with the class embedding, (B, Z + E)."""
        embedded = self.embeddings.weight.T[state["label"]]  # (B, E)
        cond = torch.cat([state[IMAGE], embedded], dim=1)
        x = self.gen_z(cond).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # (B, C, 4, 4)
        return self.layer({IMAGE: x, "cond": cond})  # type: ignore[no-any-return]


@final
class LastLayer(Stage):
    """The last layer, then norm, ReLU, convolution and tanh; its output `x` is the image.

    Only the first three channels of the convolution are colours.
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
    """The parts, named as in the checkpoint."""
    layers = nn.ModuleList(bodies)
    top = {"gen_z": gen_z, "layers": layers, "bn": bn, "conv_to_rgb": conv_to_rgb}
    return nn.ModuleDict({"embeddings": embeddings, "generator": nn.ModuleDict(top)})


@final
@dataclass(frozen=True, kw_only=True)
class ClassLatent:
    """Draws `x` = z, standard normal, with a `label`.

    With a truncation below 1, z is drawn within two standard deviations and scaled by it, as in
    BigGAN's paper.

    Args:
        size: size of z.
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
    """A BigGAN-deep from weights named as in Hugging Face's PyTorch code.

    Sizes, depth and the position of the attention are inferred from the weights. One stage per
    layer, attention included: 11, 13 and 15 for 128, 256 and 512 px. The state between stages is
    `x` (B, C, H, W) and the condition `cond` (B, Z + E). Spectral norm (`weight_orig`,
    `weight_u`, `weight_v`) is folded into plain weights.

    Args:
        tensors: `embeddings.weight`, `generator.gen_z.*`, `generator.layers.*`, ...
        truncation: in (0, 1]; selects the recorded statistics and scales z.
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
        makers: list[Callable[[], ResidualBlock | SelfAttention]] = []
        ups: list[bool] = []
        for index in range(depth):
            here = f"generator.layers.{index}"
            if f"{here}.gamma" in tensors:
                theta = tensors[f"{here}.snconv1x1_theta.weight"]
                makers.append(partial(SelfAttention, theta.shape[1]))
                continue
            ups.append(bool(len(ups) % 2) if upsample is None else upsample[len(ups)])
            outputs, inputs = (
                tensors[f"{here}.conv_3.weight"].shape[0],
                tensors[f"{here}.conv_0.weight"].shape[1],
            )
            makers.append(
                partial(ResidualBlock, inputs, outputs, condition, up=ups[-1], records=records)
            )
    except (KeyError, ValueError, IndexError):
        raise WeightsError(
            "expected BigGAN-deep weights (embeddings.weight, generator.gen_z.weight, "
            f"generator.layers.0.conv_0.weight, ...), got {one_line(sorted(tensors)[:4])}"
        ) from None
    if sum(ups) > MOST_DOUBLINGS or records < 2:
        raise WeightsError(
            f"expected a BigGAN-deep of at most {4 * 2**MOST_DOUBLINGS} pixels and 2 or more "
            f"records of its statistics, got {sum(ups)} doublings of 4 and {records} records"
        )

    def build() -> nn.ModuleDict:
        return _named(
            nn.Linear(classes, embedded, bias=False),
            nn.Linear(condition, first),
            [make() for make in makers],
            Norm(narrow, records),
            nn.Conv2d(narrow, colours, 3, padding=1),
        )

    parts = load_weights(build, tensors, "BigGAN-deep")
    for module in parts.modules():
        if isinstance(module, Statistics):
            module.read(truncation, eps)
    network: Any = parts["generator"]
    layers = [Layer(body) for body in network["layers"]]
    stages: list[Stage] = [
        FirstLayer(cast(nn.Linear, parts["embeddings"]), network["gen_z"], layers[0]),
        *layers[1:],
    ]
    stages[-1] = LastLayer(layers[-1], network["bn"], network["conv_to_rgb"])
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
"""Channels of consecutive blocks, in multiples of the width."""


def biggan_tensors(
    resolution: int, *, width: int = 128, z: int = 128, classes: int = 1000, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights of an official BigGAN-deep, named as for `biggan`.

    Args:
        resolution: 128, 256 or 512.
        width: channels of the last block.
        z: size of the latent, and of a class embedding.
        classes: number of classes.
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
    """Replace `weight_orig`, `weight_u` and `weight_v` by plain weights, `W / (u' W v)`.

    Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018;
    with the stored u and v, as in `torch.nn.utils.spectral_norm` in eval mode.
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
