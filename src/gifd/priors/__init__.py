"""Image priors: generators that can be taken apart. They know nothing of federated learning."""

from gifd.priors.dcgan import dcgan, digiface_dcgan
from gifd.priors.generator import Gaussian, Generator, Layers, Stage, State

__all__ = ["Gaussian", "Generator", "Layers", "Stage", "State", "dcgan", "digiface_dcgan"]
