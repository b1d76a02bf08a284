"""Observe: from an upload to what an attacker believes about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from gifd.attacker.guess import guessed
from gifd.attacker.observation import Ledger, Observation
from gifd.errors import InputError, expect
from gifd.federation.between import Between
from gifd.federation.defenses import Defense, check_order
from gifd.federation.upload import Upload

Attacker = Literal["static", "adaptive", "estimated"]
"""Ignores the defences, knows them, or guesses them from the update."""


def known_attacker(name: str) -> Attacker:
    """The attacker of this name.

    Raises:
        InputError: there is no such attacker.
    """
    for attacker in get_args(Attacker):
        if attacker == name:
            return attacker  # type: ignore[no-any-return]
    raise InputError(f"expected an attacker ({', '.join(get_args(Attacker))}), got '{name}'")


def observe(
    upload: Upload, *, attacker: str = "adaptive", defenses: Sequence[Defense] = ()
) -> Observation:
    """The observation of an attacker: the protocol it believes in, and its ledger.

    The believed protocol is the agreed one, wrapped in the surrogate of each believed defence. The
    ledger holds what the upload discloses, the attacker, and the believed defences.

    Args:
        upload: what reached the server.
        attacker: 'static' ignores the defences, 'adaptive' knows them with their strengths,
            'estimated' guesses them from the update.
        defenses: the client's, which an upload does not contain. Only the adaptive attacker reads
            them. For the others the ledger only records that there are defences.

    Raises:
        InputError: no such attacker, no upload, defences in an order that is not allowed, or an
            adaptive attacker who was not told the defences that there are.
    """
    expect(upload, Upload, "an Upload, as Client(...).step makes one")
    kind = known_attacker(attacker)
    check_order(defenses)
    if upload.defended and kind == "adaptive" and not defenses:
        raise InputError(
            "expected the client's defences for an adaptive attacker, got none: give "
            "defenses=client.defenses, or attacker='static' or 'estimated'"
        )
    if kind == "estimated":
        believed = guessed(upload)
    else:
        believed = tuple(defenses) if kind == "adaptive" else ()
    protocol = upload.protocol
    if isinstance(protocol, Between):
        protocol = protocol.bound(upload)
    for defense in believed:
        protocol = defense.surrogate(protocol, upload)
    facing = bool(defenses) or upload.defended or kind == "estimated"
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
