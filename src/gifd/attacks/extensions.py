"""Extensions of ours: what the preset `strongest` adds to a paper, each one switchable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from gifd.errors import InputError
from gifd.search import Cosine, Distance, Keeps, Latent, Phase, RandomSearch, Regression

BEST: Keeps = "best"
LAST: Keeps = "last"

Preset = Literal["paper", "gifd-paper", "strongest"]
"""As its own paper has an attack, as GIFD's paper compares it, or with our extensions."""
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """The extensions and their strengths; a field at its default is switched off.

    Args:
        scouting: random draws of the latent before anything is optimised, as a share of a
            phase's steps; the best draw begins (`gifd.search.RandomSearch`).
        regression: samples of the prior that teach a line from what enters the victim's head to
            the image, as a share of a phase's steps; its guess begins
            (`gifd.search.Regression`).
        smoothing: width of the smoothed replay (`gifd.search.smoothing`), in all that IG does
            and in the later half of GIFD's phases.
        curvature: width of the smoothed curvature of the replay (`gifd.search.curvature`).
        length: weight of the term by which the cosine hears the update's length too, and with
            it the image's contrast and brightness (`gifd.search.Cosine`).
        share: L1 radii as a share of the entry feature's norm instead of absolute ones.
        variation: weight of the total variation of pixels and features, in place of the paper's.
        pixels: steps, as a share of a feature phase's, of one more phase on the image itself.
        best: 1 keeps each restart's best iterate of a phase, not its last as the papers do.
        consensus: steps, as a share of a phase's, of one more run of the last phase, by one restart
            from what all agree on (`gifd.search.consensus`); needs two restarts or more.
    """

    scouting: float = 0.0
    regression: float = 0.0
    smoothing: float = 0.0
    curvature: float = 0.0
    length: float = 0.0
    share: float = 0.0
    variation: float = 0.0
    pixels: float = 0.0
    best: float = 0.0
    consensus: float = 0.0

    @property
    def matching(self) -> Cosine:
        """The matching distance: the papers' cosine, or the one that hears lengths."""
        return Cosine(norm=self.length)

    @property
    def keeps(self) -> Keeps:
        """Which iterate of a phase goes on and may answer."""
        return BEST if self.best else LAST

    def opening(self, steps: int, distance: Distance | None = None) -> tuple[Phase, ...]:
        """The phases that come before a paper's own, as shares of `steps`: they find its start."""
        return tuple(
            Phase(
                name=name,
                space=Latent(),
                steps=max(1, round(steps * share)),
                optimizer=optimizer,
                distance=distance or self.matching,
                keeps=kept,
            )
            for name, share, optimizer, kept in (
                ("scouting", self.scouting, RandomSearch(), BEST),
                ("regression", self.regression, Regression(), LAST),
            )
            if share > 0
        )

    def among(self, restarts: int) -> Extensions:
        """These extensions for so many restarts: one alone has nobody to agree with."""
        return self if restarts > 1 else self.without(["consensus"])

    def closing(self, phases: Sequence[Phase]) -> tuple[Phase, ...]:
        """These phases, and one more from the restarts' consensus if that is switched on."""
        if self.consensus <= 0:
            return tuple(phases)
        last = phases[-1]
        steps = max(1, round(last.steps * self.consensus))
        return (
            *phases[:-1],
            replace(last, merge=True),
            replace(last, name="consensus", steps=steps),
        )

    def without(self, names: Iterable[str]) -> Extensions:
        """These extensions with the named ones switched off.

        Raises:
            InputError: a name that is no extension.
        """
        known = [field.name for field in fields(self)]
        names = list(names)
        for name in names:
            if name not in known:
                raise InputError(f"expected an extension ({', '.join(known)}), got '{name}'")
        return replace(self, **dict.fromkeys(names, 0.0))

    def only(self, *names: str) -> Extensions:
        """These extensions with all but the named ones switched off."""
        return self.without(field.name for field in fields(self) if field.name not in names)

    def switched_on(self) -> dict[str, float]:
        """The extensions in use, by name, with their strength."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value}


NONE = Extensions()


def known_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        InputError: there is none.
    """
    for preset in PRESETS:
        if preset == name:
            return preset
    raise InputError(f"expected a preset ({', '.join(PRESETS)}), got '{name}'")


def choose(preset: str, strongest: Extensions, given: Extensions | None = None) -> Extensions:
    """The given extensions, or those of the preset: none of a paper's, all of `strongest`.

    Raises:
        InputError: a preset that there is not.
    """
    ours = known_preset(preset) == "strongest"
    if given is not None:
        return given
    return strongest if ours else NONE
