"""BigGAN-deep's networks: norms with recorded statistics, residual blocks and self-attention."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Statistics(nn.Module):
    """Batch statistics recorded at truncations 0, 1/(n-1), ... 1; `mean`, `inverse` of one.

    Between two records the reference code weighs the *farther* one more (`coef * first + (1 -
    coef) * second`, with coef the distance from the first); so does this, for equal images.
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
        """Set mean and 1 / standard deviation for a truncation."""
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
    """A bottleneck of four (norm, ReLU, convolution); the shortcut drops channels.

    Args:
        inputs, outputs: channels; `outputs` is `inputs` or half of it.
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
    """Attention from every position to every 2 x 2 patch: `x + gamma o(softmax(theta' phi) g)`.

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
        """The same shape; the condition is not used."""
        theta = self.snconv1x1_theta(x).flatten(2)  # (B, C/8, HW)
        phi = F.max_pool2d(self.snconv1x1_phi(x), 2).flatten(2)  # (B, C/8, HW/4)
        g = F.max_pool2d(self.snconv1x1_g(x), 2).flatten(2)  # (B, C/2, HW/4)
        attention = (theta.transpose(1, 2) @ phi).softmax(-1)  # (B, HW, HW/4)
        seen = (g @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])  # (B, C/2, H, W)
        return x + self.gamma * self.snconv1x1_o_conv(seen)  # type: ignore[no-any-return]
