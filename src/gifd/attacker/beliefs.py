"""The attacker's side of a defence: to ignore it, to be told of it, or to guess it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.federation.defenses.clip import Clip
from gifd.federation.defenses.defense import Defense, believed
from gifd.federation.defenses.noise import Laplace, Noise
from gifd.federation.defenses.quantize import Quantize
from gifd.federation.defenses.soteria import Soteria
from gifd.federation.defenses.sparsify import Sparsify

Attacker = Literal["naive", "told", "estimated"]
"""Ignores the defences, was told of them, or guesses them from the update."""

GUESSED: tuple[type[Defense], ...] = (Quantize, Sparsify, Soteria, Noise, Laplace, Clip)


def known_attacker(name: str) -> Attacker:
    """The attacker of this name.

    Raises:
        InputError: there is none.
    """
    for attacker in get_args(Attacker):
        if attacker == name:
            return attacker  # type: ignore[no-any-return]
    raise InputError(f"expected an attacker ({', '.join(get_args(Attacker))}), got '{name}'")


def guessed(observation: Observation) -> tuple[Defense, ...]:
    """Every defence that the observation shows, at the strength that it shows."""
    found: list[Defense] = []
    for kind in GUESSED:
        if any(isinstance(other, Quantize | Noise) for other in found) and kind is not Clip:
            continue  # a quantiser's zeros are its own, and one noise is enough
        guess = kind.guess(observation)
        if guess is not None:
            found.append(guess)
    return tuple(found)


def seen_by(attacker: str, observation: Observation, defenses: Sequence[Defense]) -> Observation:
    """The observation as this attacker takes it, with what it believes in.

    Args:
        attacker: what it knows.
        observation: with the undefended protocol.
        defenses: those of the client.
    """
    if attacker == "naive":
        return observation
    return believed(defenses if attacker == "told" else guessed(observation), observation)
