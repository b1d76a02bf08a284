"""Reconstruction: the result of an attack."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import final

from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import one_line
from gifd.images import png, write_image
from gifd.search import Measure, PhaseResult


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """The result of an attack on one observation.

    Args:
        images: (B, C, H, W) in [0, 1]: the answer.
        labels: (B,) the labels of its replay.
        label_source: 'granted', 'inferred' (exact), 'estimated' or 'searched' (optimised with
            the images).
        hypotheses: number of labellings that the restarts tried.
        prior_labels: (B,) the classes given to a conditional prior; None without one.
        distance: the answer's matching distance, by `selection`.
        selection: the measure that selected restarts, phases and the answer.
        phase: name of the phase that gave the answer.
        phases: the result of every phase.
        interrupted: whether Ctrl-C ended the search.
        dropped: numbers of the restarts that became non-finite.
        at_once: number of observations attacked together.
        seed, seconds: of this run; several observations at once share the time equally.
    """

    images: Float[Tensor, "B C H W"]
    labels: Shaped[Tensor, "B *T"]
    label_source: str
    hypotheses: int
    prior_labels: Shaped[Tensor, "B *T"] | None
    distance: float
    selection: Measure
    phase: str
    phases: tuple[PhaseResult, ...]
    interrupted: bool
    dropped: tuple[int, ...]
    at_once: int
    seed: int
    seconds: float

    @property
    def evaluations(self) -> int:
        """Victim gradients computed, all phases and restarts together."""
        return sum(phase.evaluations for phase in self.phases)

    def save(self, folder: str | Path) -> list[Path]:
        """Write the answer as `reconstruction-01.png` and so on, and return the paths.

        Raises:
            InputError: they cannot be written.
        """
        paths = [
            Path(folder) / f"reconstruction-{number:02d}.png"
            for number in range(1, len(self.images) + 1)
        ]
        for image, path in zip(self.images, paths, strict=True):
            write_image(image, path)
        return paths

    def _repr_html_(self) -> str:
        """The pictures and the distance, for a notebook."""
        pictures = "".join(
            f'<img src="data:image/png;base64,{b64encode(png(image)).decode("ascii")}" '
            'style="width:128px;image-rendering:pixelated;margin-right:8px" '
            f'alt="label {escape(one_line(label, 40))}">'
            for image, label in zip(self.images, self.labels.tolist(), strict=True)
        )
        return (
            f"<div>{pictures}<br>distance {self.distance:.4g}, {escape(self.phase)}, labels "
            f"{escape(self.label_source)}</div>"
        )
