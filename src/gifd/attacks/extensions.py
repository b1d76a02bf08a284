"""Extensions of ours: what the preset `strongest` adds to a paper, each one switchable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from gifd.errors import InputError

Preset = Literal["paper", "strongest"]


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """The extensions and their strengths; a field at its default is switched off.

    Args:
        curvature: width of the smoothed curvature of the replay (`gifd.inversion.curvature`).
        pixels: the image as the last feature domain: one more phase, on the pixels.
        shares: the L1 radius as a share of the entry feature's norm instead of an absolute.
        curriculum: later phases match layer by layer instead of all parameters at once.
        pruning: after the first phase only this many of the restarts go on.
    """

    curvature: float = 0.0
    pixels: bool = False
    shares: float = 0.0
    curriculum: bool = False
    pruning: int = 0

    def without(self, names: Iterable[str]) -> Extensions:
        """These extensions with the named ones switched off.

        Raises:
            InputError: a name that is no extension.
        """
        defaults = {field.name: field.default for field in fields(self)}
        names = list(names)
        unknown = [name for name in names if name not in defaults]
        if unknown:
            raise InputError(f"expected an extension ({', '.join(defaults)}), got '{unknown[0]}'")
        return replace(self, **{name: defaults[name] for name in names})  # type: ignore[arg-type]

    def switched_on(self) -> dict[str, object]:
        """The extensions in use, by name."""
        defaults = Extensions()
        values = asdict(self)
        return {name: v for name, v in values.items() if v != getattr(defaults, name)}


NONE = Extensions()
