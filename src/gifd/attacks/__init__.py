"""The papers, each as a value on the one engine."""

from gifd.attacks.attack import Attack, Reconstruction
from gifd.attacks.extensions import Extensions, Preset
from gifd.attacks.gifd import gifd, gifd_last, gifd_latent
from gifd.attacks.ig import ig
from gifd.attacks.label_mapping import LabelMapping

__all__ = [
    "Attack",
    "Extensions",
    "LabelMapping",
    "Preset",
    "Reconstruction",
    "gifd",
    "gifd_last",
    "gifd_latent",
    "ig",
]
