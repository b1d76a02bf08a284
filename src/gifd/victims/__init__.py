"""The attacked side: networks, and the client that computes on private images."""

from gifd.victims.client import Client, check_replay
from gifd.victims.networks import IMAGENET_MEAN, IMAGENET_STD, ConvNet, LeNet, ResNet18

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Client",
    "ConvNet",
    "LeNet",
    "ResNet18",
    "check_replay",
]
