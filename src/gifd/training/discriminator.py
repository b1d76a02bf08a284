"""StyleGAN2's discriminator: residual blocks down to the base, minibatch standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gifd.priors.style_network import (
    EqualLinear,
    MappingNetwork,
    activate,
    binomial,
    each_channel,
)


class EqualConv(nn.Module):
    """A convolution with equalised learning rate; `down` blurs and halves the size first.

    Args:
        inputs, outputs: channels.
        size: of the kernel.
        bias: whether there is one.
        down: whether to halve the size.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, *, bias: bool = True, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain, self.padding, self.down = 1 / math.sqrt(inputs * size**2), size // 2, down
        self.register_buffer("filter", binomial())
        self.filter: Tensor

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H2 W2"]:
        """(B, inputs, H, W) -> (B, outputs, H, W), or half the size."""
        weight = self.weight * self.gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        taps = each_channel(self.filter, x)
        if self.padding == 0:  # 1x1: blurring and halving at once
            x = F.conv2d(x, taps, stride=2, padding=1, groups=x.shape[1])
            return F.conv2d(x, weight, self.bias)
        x = F.conv2d(x, taps, padding=2, groups=x.shape[1])  # (B, I, H + 1, W + 1)
        return F.conv2d(x, weight, self.bias, stride=2)


@final
class ResidualBlock(nn.Module):
    """Two convolutions and a linear shortcut; halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = EqualConv(inputs, inputs, 3)
        self.conv1 = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H2 W2"]:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2)."""
        y: Tensor = activate(self.conv1(activate(self.conv0(x)))) + self.skip(x)
        return y * math.sqrt(0.5)


@final
class Discriminator(nn.Module):
    """The logit of "real" for each image, conditioned on the label by projection.

    Args:
        channels: of the generator's blocks, from the base up; used in reverse order.
        colours: channels of the images.
        base: side of the generator's first block.
        classes: number of labels; 0 for none.
        group: group size of the minibatch standard deviation.

    Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR 2020
    (the residual discriminator); the projection is Miyato and Koyama's, ICLR 2018, as in
    StyleGAN2-ADA.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        colours: int = 3,
        base: int = 4,
        classes: int = 0,
        group: int = 4,
    ) -> None:
        super().__init__()
        self.group, self.classes = group, classes
        width = channels[0]
        self.from_rgb = EqualConv(colours, channels[-1], 1)
        down = list(reversed(channels))
        self.blocks = nn.Sequential(*(ResidualBlock(i, o) for i, o in pairwise(down)))
        self.conv = EqualConv(width + 1, width, 3)
        self.fc = EqualLinear(width * base**2, width)
        self.out = EqualLinear(width, width if classes else 1)
        if classes:
            self.mapping = MappingNetwork(z=0, w=width, classes=classes, layers=8)

    def forward(
        self, x: Float[Tensor, "B C H W"], labels: Tensor | None = None
    ) -> Float[Tensor, "B"]:
        """Logits of images, about [-1, 1], with (B,) class indices if it is conditional."""
        x = activate(self.from_rgb(x))
        for block in self.blocks:
            x = block(x)  # finally (B, width, base, base)
        x = activate(self.conv(torch.cat([x, self._spread(x)], dim=1)))
        x = self.out(activate(self.fc(x.flatten(1))))  # (B, width) or (B, 1)
        if not self.classes:
            return x[:, 0]
        w: Tensor = self.mapping(x.new_zeros(len(x), 0), labels)  # (B, width)
        return (x * w).sum(1) / math.sqrt(x.shape[1])

    def _spread(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """The standard deviation over a group of images, averaged over channels and places."""
        count, _, height, width = x.shape
        size = next(size for size in range(min(self.group, count), 0, -1) if count % size == 0)
        y = x.reshape(size, -1, *x.shape[1:])  # (G, B / G, C, H, W)
        y = (y.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (B / G,)
        return y.repeat(size)[:, None, None, None].expand(count, 1, height, width)
