"""gifd: what does a federated-learning update give away?

The public names, in the order of the data flow: a client runs a protocol on its private images and
uploads an update, an attacker observes the upload, an attack inverts the observation, with or
without a prior, and metrics score the result. The attacks are in `gifd.attacks`; one of them has
the name of the package.
"""

from gifd.attacker.observation import Ledger, Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, Reconstruction
from gifd.errors import GifdError
from gifd.federation.client import Client, check_replay
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.secret import Secret
from gifd.federation.upload import Upload
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
    "Upload",
    "check_replay",
    "digiface_dcgan",
    "faces64",
    "observe",
    "photos64",
    "read_image",
    "score",
]
