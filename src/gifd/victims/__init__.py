"""The attacked networks."""

from gifd.victims.networks import IMAGENET_MEAN, IMAGENET_STD, ConvNet, LeNet, ResNet18

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ConvNet", "LeNet", "ResNet18"]
