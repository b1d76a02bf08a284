"""Defences: each the triple of what the client does, an attacker believes, and can guess."""

from gifd.defenses.aggregate import Aggregate
from gifd.defenses.ats import ATS
from gifd.defenses.attacker import Attacker, guessed, known_attacker, seen_by
from gifd.defenses.censor import Censor
from gifd.defenses.clip import Clip
from gifd.defenses.defense import Defense, believed, check_order, wrapped
from gifd.defenses.dpsgd import DPSGD
from gifd.defenses.noise import Laplace, Noise
from gifd.defenses.precode import Precode
from gifd.defenses.quantize import Quantize
from gifd.defenses.soteria import Soteria
from gifd.defenses.sparsify import Sparsify

__all__ = [
    "ATS",
    "DPSGD",
    "Aggregate",
    "Attacker",
    "Censor",
    "Clip",
    "Defense",
    "Laplace",
    "Noise",
    "Precode",
    "Quantize",
    "Soteria",
    "Sparsify",
    "believed",
    "check_order",
    "guessed",
    "known_attacker",
    "seen_by",
    "wrapped",
]
