"""Defences: what the client does, what an attacker replays, and what it can guess."""

from gifd.federation.defenses.aggregate import Aggregate
from gifd.federation.defenses.ats import ATS
from gifd.federation.defenses.censor import Censor
from gifd.federation.defenses.clip import Clip
from gifd.federation.defenses.defense import Defense, check_order, wrapped
from gifd.federation.defenses.dpsgd import DPSGD
from gifd.federation.defenses.hide import Hide
from gifd.federation.defenses.noise import Laplace, Noise
from gifd.federation.defenses.precode import Precode
from gifd.federation.defenses.quantize import Quantize
from gifd.federation.defenses.soteria import Soteria
from gifd.federation.defenses.sparsify import Sparsify

__all__ = [
    "ATS",
    "DPSGD",
    "Aggregate",
    "Censor",
    "Clip",
    "Defense",
    "Hide",
    "Laplace",
    "Noise",
    "Precode",
    "Quantize",
    "Soteria",
    "Sparsify",
    "check_order",
    "wrapped",
]
