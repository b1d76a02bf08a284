"""gifd: what does a federated-learning update give away?

The public names, in the order data flows: a client runs a protocol on its private images, a
server observes the update, an attack inverts it with or without a prior, metrics compare. The
attacks themselves are in `gifd.attacks`, one of them by the package's own name.
"""

from gifd.attacker.observation import Ledger, Observation, Secret
from gifd.attacks import Attack, Reconstruction
from gifd.errors import GifdError
from gifd.federation.client import Client, check_replay
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.images import read_image
from gifd.metrics import score
from gifd.model import Model
from gifd.priors import Generator, Stage, digiface_dcgan, faces64, photos64
from gifd.updates import Update
from gifd.victims import ConvNet, LeNet, ResNet18

__all__ = [
    "Attack",
    "Client",
    "ConvNet",
    "FedAvg",
    "FedSGD",
    "Generator",
    "GifdError",
    "LeNet",
    "Ledger",
    "Model",
    "Observation",
    "Protocol",
    "Reconstruction",
    "ResNet18",
    "Secret",
    "Stage",
    "Update",
    "check_replay",
    "digiface_dcgan",
    "faces64",
    "photos64",
    "read_image",
    "score",
]
