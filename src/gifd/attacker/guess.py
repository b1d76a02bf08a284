"""Guess: the defences that an update reveals, with their strengths."""

from __future__ import annotations

from dataclasses import replace

from gifd.federation.defenses import (
    Clip,
    Defense,
    Hide,
    Laplace,
    Noise,
    Quantize,
    Soteria,
    Sparsify,
)
from gifd.federation.upload import Upload

GUESSED: tuple[type[Defense], ...] = (Hide, Quantize, Sparsify, Soteria, Noise, Laplace, Clip)
"""Kinds of defences that can be guessed, in the order of the attempts."""


def guessed(upload: Upload) -> tuple[Defense, ...]:
    """The defences that the update alone reveals (`Defense.guess`)."""
    found: list[Defense] = []
    for kind in GUESSED:
        if any(isinstance(other, Quantize | Noise) for other in found) and kind is not Clip:
            continue  # quantisation makes zeros too, and one kind of noise is enough
        guess = kind.guess(upload)
        if guess is not None:
            found.append(guess)
        if isinstance(guess, Hide):  # what is not sent is no sign of another defence
            upload = replace(upload, protocol=guess.surrogate(upload.protocol, upload))
    return tuple(found)
