"""The defences that an update shows, each at the strength that it shows."""

from __future__ import annotations

from gifd.federation.defenses import (
    Clip,
    Defense,
    Laplace,
    Noise,
    Quantize,
    Soteria,
    Sparsify,
)
from gifd.federation.upload import Upload

GUESSED: tuple[type[Defense], ...] = (Quantize, Sparsify, Soteria, Noise, Laplace, Clip)
"""Kinds of defences that can be guessed, in the order in which they are tried."""


def guessed(upload: Upload) -> tuple[Defense, ...]:
    """Every defence that can be seen in an upload, from its update alone (`Defense.guess`)."""
    found: list[Defense] = []
    for kind in GUESSED:
        if any(isinstance(other, Quantize | Noise) for other in found) and kind is not Clip:
            continue  # a quantiser makes zeros too, and one kind of noise is enough
        guess = kind.guess(upload)
        if guess is not None:
            found.append(guess)
    return tuple(found)
