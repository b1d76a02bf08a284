"""Observe: from what reached the server to what an attacker believes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from gifd.attacker.guess import guessed
from gifd.attacker.observation import Ledger, Observation
from gifd.errors import InputError, expect
from gifd.federation.defenses import Defense, check_order
from gifd.federation.upload import Upload

Attacker = Literal["static", "adaptive", "estimated"]
"""Ignores the defences, was told of them, or guesses them from the update."""


def known_attacker(name: str) -> Attacker:
    """The attacker of this name.

    Raises:
        InputError: there is none.
    """
    for attacker in get_args(Attacker):
        if attacker == name:
            return attacker  # type: ignore[no-any-return]
    raise InputError(f"expected an attacker ({', '.join(get_args(Attacker))}), got '{name}'")


def observe(
    upload: Upload, *, attacker: str = "adaptive", defenses: Sequence[Defense] = ()
) -> Observation:
    """What an attacker makes of an upload: its belief of the protocol, and its ledger.

    The belief is the agreed protocol behind the surrogate of every defence that this attacker
    believes in. The ledger holds what the upload discloses, the attacker and its belief.

    Args:
        upload: what reached the server.
        attacker: 'static' ignores the defences, 'adaptive' was told of them with their
            strengths, 'estimated' guesses them from the update.
        defenses: the client's. Only the adaptive attacker believes in them; of the others the
            ledger then says that there was something to ignore or to guess.

    Raises:
        InputError: no such attacker, no upload, or defences that cannot follow each other.
    """
    expect(upload, Upload, "an Upload, as Client(...).step makes one")
    kind = known_attacker(attacker)
    check_order(defenses)
    if kind == "estimated":
        believed = guessed(upload)
    else:
        believed = tuple(defenses) if kind == "adaptive" else ()
    protocol = upload.protocol
    for defense in believed:
        protocol = defense.surrogate(protocol, upload)
    facing = bool(defenses) or kind == "estimated"
    ledger = Ledger(
        image_shape=upload.image_shape,
        batch_size=upload.batch_size,
        labels=upload.labels,
        batch_norm=upload.batch_norm,
        batch_norm_source=upload.batch_norm_source,
        defenses=tuple(map(repr, defenses)) if defenses and kind == "adaptive" else None,
        attacker=kind if facing else None,
        believed=tuple(map(repr, believed)),
    )
    return Observation(update=upload.update, model=upload.model, protocol=protocol, ledger=ledger)
