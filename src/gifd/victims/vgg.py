"""VGG: 3x3 convolutions, pooling by two, and a classifier of three layers."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from gifd.victims.networks import Size, halved

WIDTHS = (64, 128, 256, 512, 512)
"""Channels between two poolings."""


class VGG(nn.Module):
    """Five groups of 3x3 convolutions with ReLUs and max-pooling, then three linear layers.

    Works for any size: pooling rounds up, and the classifier is sized to match. Initialised as in
    torchvision, without dropout.

    Args:
        depths: convolutions per group.
        classes: number of classes.
        size: side of the images, or height and width.
        hidden: units of the classifier's two hidden layers.
        channels: of the images.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015.
    """

    def __init__(
        self, depths: Sequence[int], classes: int, size: Size, hidden: int, channels: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width, depth in zip(WIDTHS, depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(before * halved(size, 5), hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"]:
        """Logits of normalised images of the size given at construction."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))  # (B, 512, H/32, W/32)
        return logits


def vgg11(classes: int, size: Size, *, hidden: int = 512, channels: int = 3) -> VGG:
    """VGG-11 with a classifier sized to the images; 4,096 hidden units in the paper.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015.
    """
    return VGG((1, 1, 2, 2, 2), classes, size, hidden, channels)


def vgg16(classes: int, size: Size, *, hidden: int = 512, channels: int = 3) -> VGG:
    """VGG-16 with a classifier sized to the images; 4,096 hidden units in the paper.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015.
    """
    return VGG((2, 2, 3, 3, 3), classes, size, hidden, channels)
