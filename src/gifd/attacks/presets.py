"""Presets: an attack as in its paper, as in GIFD's comparison, or with our extensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

from gifd.errors import InputError, expect
from gifd.priors.generator import Generator
from gifd.search import (
    Consensus,
    Keeps,
    Latent,
    Leaves,
    Measure,
    Phase,
    Regression,
    Samples,
    Source,
)

T = TypeVar("T")

Preset = Literal["paper", "gifd-paper", "strongest"]
"""As in its own paper, as in GIFD's comparison, or with our extensions."""
PRESETS: tuple[Preset, ...] = get_args(Preset)


def known_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        InputError: there is none.
    """
    for preset in PRESETS:
        if preset == name:
            return preset
    raise InputError(f"expected a preset ({', '.join(PRESETS)}), got '{name}'")


def is_ours(preset: str) -> bool:
    """Whether our extensions are on by default.

    Raises:
        InputError: no preset.
    """
    return known_preset(preset) == "strongest"


def given(value: T | None, default: T) -> T:
    """What was chosen, or the preset's.

    Raises:
        InputError: a number below 0, or one that is not finite.
    """
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise InputError(f"expected options of at least 0 and finite, got {value}")
    return default if value is None else value


def kept(best: bool) -> Keeps:
    """Which iterate a phase keeps: the best, or the last as in the papers."""
    return "best" if best else "last"


def switched_on(**extensions: float) -> dict[str, float]:
    """The extensions in use, name -> strength, for the record."""
    return {name: float(value) for name, value in extensions.items() if value}


def expect_prior(prior: object) -> None:
    """Check that it is a generator, and not e.g. the name of one.

    Raises:
        InputError: it is not.
    """
    expect(prior, Generator, "a prior, as faces64() makes one")


def learnt_from(public: Source | None, prior: Generator | None) -> Source:
    """What an attack learns from: these images, or samples of its prior, or random shapes.

    Raises:
        InputError: something that is neither a source nor a prior.
    """
    if prior is not None:
        expect_prior(prior)
    if public is None:
        return Leaves() if prior is None else Samples()
    expect(public, Source, "public images, as Public(images=...)")
    return public


def guessed_first(steps: int, measure: Measure) -> tuple[Phase, ...]:
    """A phase of one step that begins at a regression's estimate (`gifd.search.Regression`).

    Args:
        steps: its cost per restart in victim gradients; 0 for no phase.
        measure: of the attack.
    """
    if steps < 1:
        return ()
    begin = Regression(evaluations=steps - 1)
    return (
        Phase(name="regression", space=Latent(), steps=1, begin=begin, distance=measure.distance),
    )


def agreed_last(phases: Sequence[Phase], share: float) -> tuple[Phase, ...]:
    """These phases, then the last once more, as one restart from the consensus of all.

    Args:
        phases: at least one.
        share: its steps as a share of the last phase's; 0 for no phase.
    """
    if share <= 0:
        return tuple(phases)
    steps = max(1, round(phases[-1].steps * share))
    return (*phases, replace(phases[-1], name="consensus", steps=steps, begin=Consensus()))
