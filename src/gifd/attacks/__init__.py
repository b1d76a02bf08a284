"""The papers' attacks, each a value that the engine runs."""

from gifd.attacks.ablations import gifd_last, gifd_latent, gifd_noball
from gifd.attacks.attack import Attack
from gifd.attacks.dlg import dlg, idlg
from gifd.attacks.ensemble import ensemble
from gifd.attacks.fedleak import fedleak
from gifd.attacks.ggl import ggl
from gifd.attacks.gias import gias
from gifd.attacks.gifd import gifd
from gifd.attacks.gradinversion import gradinversion
from gifd.attacks.ig import ig
from gifd.attacks.label_mapping import LabelMapping
from gifd.attacks.lti import lti
from gifd.attacks.peel import peel
from gifd.attacks.presets import Preset
from gifd.attacks.reconstruction import Reconstruction

__all__ = [
    "Attack",
    "LabelMapping",
    "Preset",
    "Reconstruction",
    "dlg",
    "ensemble",
    "fedleak",
    "ggl",
    "gias",
    "gifd",
    "gifd_last",
    "gifd_latent",
    "gifd_noball",
    "gradinversion",
    "idlg",
    "ig",
    "lti",
    "peel",
]
