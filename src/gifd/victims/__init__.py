"""The networks under attack."""

from gifd.victims.efficientnet import EfficientNetLite0, efficientnet_lite0
from gifd.victims.libraries import convnext, deit, densenet121, resnet50, vit
from gifd.victims.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConvNet,
    LeNet,
    ResNet18,
    Size,
    normalization,
)
from gifd.victims.vgg import vgg11, vgg16

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ConvNet",
    "EfficientNetLite0",
    "LeNet",
    "ResNet18",
    "Size",
    "convnext",
    "deit",
    "densenet121",
    "efficientnet_lite0",
    "normalization",
    "resnet50",
    "vgg11",
    "vgg16",
    "vit",
]
