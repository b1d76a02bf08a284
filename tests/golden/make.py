"""Golden numbers from the reference implementations, for the tests of priors and training.

    cd tests && python -m golden.make ADA ROSINALITY BIGGAN > golden/priors.json

ADA, ROSINALITY and BIGGAN are checkouts of NVlabs/stylegan2-ada-pytorch,
rosinality/stylegan2-pytorch and huggingface/pytorch-pretrained-BigGAN. Nothing of theirs is
kept but the numbers. Each entry holds the names and shapes of the weights, digests (see
`formula.py`) of the images and of the gradient of `probe(images)` with respect to the latent and
to `x` at every cut, where what else crosses the cut (rgb, w, condition) is held fixed.
"""

import importlib
import itertools
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden.formula import digest, numbers, probe, weights

Golden = dict[str, object]


def main() -> None:
    """Print the numbers of all references as JSON."""
    ada, rosinality, biggan = sys.argv[1:4]
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # imported, not needed
    found = {
        "stylegan2-ada": stylegan2_ada(ada, classes=0),
        "stylegan2-ada conditional": stylegan2_ada(ada, classes=5),
        "discriminator": discriminator(ada, classes=0),
        "discriminator conditional": discriminator(ada, classes=5),
        "rosinality": stylegan2_rosinality(rosinality),
        "biggan truncation 1.0": biggan_deep(biggan, 1.0),
        "biggan truncation 0.43": biggan_deep(biggan, 0.43),
    }
    print(json.dumps(found))


def shapes(module: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of its tensors."""
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def fill(module: nn.Module) -> None:
    """Weights by formula."""
    module.eval().requires_grad_(False)
    module.load_state_dict(weights(shapes(module)))


def golden(net: nn.Module, images: Tensor, slopes: list[Tensor]) -> Golden:
    """Shapes of the weights, digests of the images and of the gradients."""
    gradients = [digest(slope) for slope in slopes]
    return {"shapes": shapes(net), "images": digest(images), "gradients": gradients}


def slope(images: Tensor, at: Tensor) -> Tensor:
    """The gradient of the probe."""
    return torch.autograd.grad(probe(images), at)[0]


def stylegan2_ada(checkout: str, *, classes: int) -> Golden:
    """NVIDIA's network at 32 px."""
    sys.path.insert(0, checkout)
    networks = importlib.import_module("training.networks")
    sys.path.pop(0)
    net = networks.Generator(
        10,
        classes,
        14,
        32,
        3,
        mapping_kwargs={"num_layers": 3},
        synthesis_kwargs={"channel_base": 128, "channel_max": 16, "conv_clamp": 2.0},
    )
    fill(net)
    z = numbers("z", (2, 10)).requires_grad_()
    label = F.one_hot(torch.tensor([1, 3]), classes).float() if classes else None
    images = net(z, label, noise_mode="const")
    slopes = [slope(images, z)]
    ws = net.mapping(z, label).detach()
    x = img = None
    for index, resolution in enumerate((4, 8, 16)):
        block = getattr(net.synthesis, f"b{resolution}")
        used = ws[:, max(0, 2 * index - 1) : 2 * index + 2]
        x, img = block(x, img, used, noise_mode="const")
        leaf, rest = x.detach().requires_grad_(), img.detach()
        h, rgb = leaf, rest.clone()
        for later in range(index + 1, 4):
            block = getattr(net.synthesis, f"b{4 * 2**later}")
            h, rgb = block(h, rgb, ws[:, 2 * later - 1 : 2 * later + 2], noise_mode="const")
        slopes.append(slope(rgb, leaf))
    return golden(net, images, slopes)


def discriminator(checkout: str, *, classes: int) -> Golden:
    """NVIDIA's discriminator at 16 px; its logits are digested in place of images."""
    sys.path.insert(0, checkout)
    networks = importlib.import_module("training.networks")
    sys.path.pop(0)
    net = networks.Discriminator(classes, 16, 3, channel_base=64, channel_max=12)
    fill(net)
    images = numbers("images", (8, 3, 16, 16)).requires_grad_()
    label = F.one_hot(torch.tensor([1, 3, 0, 2, 4, 4, 1, 0]), classes).float() if classes else None
    logits = net(images, label)[:, 0]
    return golden(net, logits, [torch.autograd.grad(logits.square().sum(), images)[0]])


def stylegan2_rosinality(checkout: str) -> Golden:
    """The network of rosinality at 16 px, its compiled operations replaced by PyTorch's."""
    op = types.ModuleType("op")
    source = (Path(checkout) / "op" / "upfirdn2d.py").read_text(encoding="utf-8")
    native = source[source.index("def upfirdn2d_native") :]
    exec(compile(native, "upfirdn2d_native", "exec"), {"F": F, "torch": torch}, op.__dict__)
    op.__dict__["upfirdn2d_native"].__globals__.update(F=F, torch=torch)

    def fused(x: Tensor, bias: Tensor, slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
        return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), slope) * scale

    class Fused(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(channels))

        def forward(self, x: Tensor) -> Tensor:
            return fused(x, self.bias)

    def upfirdn2d(
        x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
    ) -> Any:
        return op.upfirdn2d_native(x, kernel, up, up, down, down, *pad, *pad)

    op.__dict__.update(
        fused_leaky_relu=fused,
        FusedLeakyReLU=Fused,
        upfirdn2d=upfirdn2d,
        conv2d_gradfix=types.SimpleNamespace(conv2d=F.conv2d, conv_transpose2d=F.conv_transpose2d),
    )
    sys.modules["op"] = op
    sys.path.insert(0, checkout)
    model = importlib.import_module("model")
    sys.path.pop(0)
    net = model.Generator(16, 12, 2, channel_multiplier=2)
    narrow(net, model, 12, [12, 8, 8])
    fill(net)
    z = numbers("z", (2, 12)).requires_grad_()
    images, _ = net([z], randomize_noise=False)
    slopes = [slope(images, z)]
    w = net.style(z).detach()[:, None].repeat(1, net.n_latent, 1)
    noise = [getattr(net.noises, f"noise_{i}") for i in range(net.num_layers)]
    x = net.conv1(net.input(w), w[:, 0], noise=noise[0])
    skip = net.to_rgb1(x, w[:, 1])
    for cut in range(2):
        leaf = x.detach().requires_grad_()
        h, rgb = leaf, skip
        for j in range(cut, 2):
            h, rgb = up(net, j, h, rgb, w, noise)
        slopes.append(slope(rgb, leaf))
        x, skip = up(net, cut, x, skip, w, noise)
    return golden(net, images, slopes)


def narrow(net: Any, model: types.ModuleType, w: int, channels: list[int]) -> None:
    """The same network with fewer channels, so that the numbers are quick to make."""
    net.input = model.ConstantInput(channels[0])
    net.conv1 = model.StyledConv(channels[0], channels[0], 3, w)
    net.to_rgb1 = model.ToRGB(channels[0], w, upsample=False)
    for j, (before, after) in enumerate(itertools.pairwise(channels)):
        net.convs[2 * j] = model.StyledConv(before, after, 3, w, upsample=True)
        net.convs[2 * j + 1] = model.StyledConv(after, after, 3, w)
        net.to_rgbs[j] = model.ToRGB(after, w)


def up(
    net: Any, j: int, x: Tensor, skip: Tensor, w: Tensor, noise: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One resolution of rosinality's network."""
    x = net.convs[2 * j](x, w[:, 2 * j + 1], noise=noise[2 * j + 1])
    x = net.convs[2 * j + 1](x, w[:, 2 * j + 2], noise=noise[2 * j + 2])
    return x, net.to_rgbs[j](x, w[:, 2 * j + 3], skip)


def biggan_deep(checkout: str, truncation: float) -> Golden:
    """Hugging Face's network at 32 px."""
    package = types.ModuleType("biggan_reference")
    package.__path__ = [str(Path(checkout) / "pytorch_pretrained_biggan")]
    sys.modules["biggan_reference"] = package
    files = types.ModuleType("biggan_reference.file_utils")  # it only downloads
    files.__dict__["cached_path"] = None
    sys.modules["biggan_reference.file_utils"] = files
    config = importlib.import_module("biggan_reference.config").BigGANConfig(
        output_dim=32,
        z_dim=6,
        class_embed_dim=6,
        channel_width=8,
        num_classes=7,
        layers=[
            (False, 16, 16),
            (True, 16, 8),
            (False, 8, 8),
            (True, 8, 4),
            (False, 4, 2),
            (True, 2, 1),
        ],
        attention_layer_position=4,
        n_stats=11,
    )
    net = importlib.import_module("biggan_reference.model").BigGAN(config)
    fill(net)
    z = numbers("z", (2, 6)).requires_grad_()
    label = F.one_hot(torch.tensor([1, 3]), 7).float()
    images = net(z, label, truncation)
    slopes = [slope(images, z)]
    cond = torch.cat([z, net.embeddings(label)], dim=1).detach()
    top = net.generator
    x = top.gen_z(cond).view(-1, 4, 4, 16 * 8).permute(0, 3, 1, 2).contiguous()

    def layer(index: int, h: Tensor) -> Any:
        body = top.layers[index]
        return body(h) if hasattr(body, "gamma") else body(h, cond, truncation)

    for cut in range(len(top.layers) - 1):
        x = layer(cut, x)
        leaf = x.detach().requires_grad_()
        h = leaf
        for index in range(cut + 1, len(top.layers)):
            h = layer(index, h)
        h = torch.tanh(top.conv_to_rgb(F.relu(top.bn(h, truncation)))[:, :3])
        slopes.append(slope(h, leaf))
    return golden(net, images, slopes)


if __name__ == "__main__":
    main()
