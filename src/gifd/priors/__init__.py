"""Image priors: generators that can be cut between stages, independent of federated learning."""

from gifd.priors.biggan import biggan
from gifd.priors.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from gifd.priors.dcgan import dcgan, digiface_dcgan
from gifd.priors.generator import Gaussian, Generator, Layers, Stage, State
from gifd.priors.remapper import Remapper, read_remapper, write_remapper
from gifd.priors.shipped import FACES64, PHOTOS64, faces64, photos64
from gifd.priors.stylegan2 import stylegan2

__all__ = [
    "FACES64",
    "PHOTOS64",
    "Checkpoint",
    "Gaussian",
    "Generator",
    "Layers",
    "Remapper",
    "Stage",
    "State",
    "biggan",
    "dcgan",
    "digiface_dcgan",
    "faces64",
    "photos64",
    "read_checkpoint",
    "read_remapper",
    "stylegan2",
    "write_checkpoint",
    "write_remapper",
]
