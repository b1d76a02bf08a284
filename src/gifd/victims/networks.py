"""The victim architectures of the literature: ResNet-18, LeNet and a plain ConvNet."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Size = int | tuple[int, int]
"""The side of square images, or their height and width, in pixels."""


def normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and deviation for 3 channels; for others, those means of both, repeated."""
    if channels == len(IMAGENET_MEAN):
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (round(sum(each) / len(each), 3) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean,) * channels, (std,) * channels


def halved(size: Size, times: int) -> int:
    """How many positions are left after halving the sides so often, rounding up."""
    height, width = (size, size) if isinstance(size, int) else size
    step: int = 2**times
    return -(-height // step) * -(-width // step)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the basic block of He et al., CVPR 2016."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """(B, width_in, H, W) -> (B, width, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return F.relu(h + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no max-pooling, the usual victim in the literature.

    Convolutions are initialised as in torchvision (normal, fan-out, gain of a ReLU). In eval mode
    the initialisation of an untrained network matters.

    Source: He et al., CVPR 2016; the stem as in Fang et al., GIFD, ICCV 2023, Sec. 4.1.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, 1), ResidualBlock(64, 64, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 128, 2), ResidualBlock(128, 128, 1))
        self.layer3 = nn.Sequential(ResidualBlock(128, 256, 2), ResidualBlock(256, 256, 1))
        self.layer4 = nn.Sequential(ResidualBlock(256, 512, 2), ResidualBlock(512, 512, 1))
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"]:
        """Logits of normalised images."""
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 64, H, W)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 512, H/8, W/8)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class LeNet(nn.Module):
    """The LeNet of DLG: strided 5x5 convolutions and sigmoids, so twice differentiable.

    Its weights are drawn from U(-0.5, 0.5), as DLG requires.

    Source: Zhu et al., Deep Leakage from Gradients, NeurIPS 2019.
    """

    def __init__(self, classes: int, size: Size = 32, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 12, 5, 2, 2)
        self.conv2 = nn.Conv2d(12, 12, 5, 2, 2)
        self.conv3 = nn.Conv2d(12, 12, 5, 1, 2)
        self.fc = nn.Linear(12 * halved(size, 2), classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"]:
        """Logits of normalised images of the size given at construction."""
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = torch.sigmoid(convolution(x))  # (B, 12, H/2, W/2), then H/4, then H/4
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class ConvNet(nn.Module):
    """A small, fast victim: four strided 3x3 convolutions with batch norm."""

    def __init__(self, classes: int, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
                for i, o in pairwise(widths)
            )
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"]:
        """Logits of normalised images."""
        logits: Tensor = self.fc(self.body(x).mean((2, 3)))  # (B, 4 width, H/16, W/16)
        return logits
