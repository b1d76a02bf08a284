"""Point: one defence at one strength against one attacker: what leaks and what is left."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gifd.errors import InputError, one_line
from gifd.interval import mean_interval


class Point(BaseModel):
    """One point of a frontier. Scores are lists, a value an image; null where infinite.

    `defense` is a name or 'none', `strength` its options; `accuracy`, `cosine`, `length` and
    `epsilon` are what `gifd.campaign.utility` says.
    """

    model_config = ConfigDict(frozen=True)

    defense: str
    strength: str
    attack: str
    preset: str
    attacker: str
    evaluations: int
    victim: str
    seed: int
    rounds: int
    images: list[str]
    psnr: list[float | None]
    ssim: list[float | None]
    stlpips: list[float | None]
    accuracy: float
    cosine: float | None
    length: float | None
    epsilon: float | None

    @property
    def setting(self) -> dict[str, object]:
        """What all points of one frontier share."""
        shared = ("attack", "preset", "evaluations", "victim", "seed", "rounds", "images")
        return {name: getattr(self, name) for name in shared}

    def mean(self, metric: str) -> tuple[float, float]:
        """Of 'psnr', 'ssim' or 'stlpips' over the images, and half of its 95 % interval."""
        return _interval([value for value in getattr(self, metric) if value is not None])

    def change(self, other: Point, metric: str) -> tuple[float, float]:
        """Likewise of this point's value minus the other's, image by image."""
        pairs = zip(getattr(self, metric), getattr(other, metric), strict=True)
        return _interval([a - b for a, b in pairs if a is not None and b is not None])


def _interval(values: list[float]) -> tuple[float, float]:
    mean, half = mean_interval(values) if values else (math.nan, None)
    return mean, half or 0.0


def read_points(path: Path) -> list[Point]:
    """The points of a JSON Lines file; none where there is no file.

    Raises:
        InputError: a line that is no point.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Point.model_validate_json(line) for line in lines if line]
    except (OSError, ValidationError) as error:
        reason = one_line(error)
        raise InputError(f"expected points of a frontier in '{path}', got: {reason}") from None


def add_point(point: Point, path: Path) -> None:
    """Append a point.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(point.model_dump_json() + "\n")
    except OSError as error:
        raise InputError(f"expected to write to '{path}', got: {error}") from None
