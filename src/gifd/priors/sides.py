"""Sides: the sizes that generators grow from a small base by doubling."""

from __future__ import annotations

SMALLEST_BASE = 4
MULTIPLE = 4
"""Sides that are multiples of it double at least twice, from a base of at least 4 from 16 on."""


def base_of(height: int, width: int) -> tuple[int, int, int]:
    """The base's height and width, and the doublings from there: 64 = 4 * 2^4, 28 = 7 * 2^2.

    They double as often as both sides can be halved, with a base of at least 4.

    Raises:
        ValueError: a side below 8, or that is not a multiple of 4.
    """
    if min(height, width) < 2 * SMALLEST_BASE or height % MULTIPLE or width % MULTIPLE:
        raise ValueError(f"sides of at least 8 that are multiples of {MULTIPLE}")
    doublings = 0
    while height % 2 == 0 == width % 2 and min(height, width) >= 2 * SMALLEST_BASE:
        height, width, doublings = height // 2, width // 2, doublings + 1
    return height, width, doublings
