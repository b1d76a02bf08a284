"""The attacked side: networks, private images and the client that computes on them."""

from gifd.victims.client import Client, check_replay
from gifd.victims.images import IMAGENET_MEAN, IMAGENET_STD, read_image
from gifd.victims.networks import ConvNet, LeNet, ResNet18

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Client",
    "ConvNet",
    "LeNet",
    "ResNet18",
    "check_replay",
    "read_image",
]
