"""Record: what one trial was and what came of it, as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from gifd.campaign.renamed import ATTACKERS

Number = float | None
"""JSON has no infinity and no NaN: they are null."""


class Scores(BaseModel):
    """Each metric; null where it was not computed, or is infinite.

    PSNR is in dB, higher is better, as is SSIM; MSE (on [0, 1]), ST-LPIPS and LPIPS are better
    lower. Of a batch they are means over its images, each matched with its reconstruction.
    `own_metrics` are those of the user's, by name.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    psnr: Number = None
    ssim: Number = None
    mse: Number = None
    stlpips: Number = None
    lpips: Number = None
    own_metrics: dict[str, Number] = {}


def as_scores(values: Mapping[str, Number]) -> dict[str, Any]:
    """Metrics by name as the fields of `Scores`."""
    fields = set(Scores.model_fields) - {"own_metrics"}
    own = {name: value for name, value in values.items() if name not in fields}
    return {name: value for name, value in values.items() if name in fields} | {"own_metrics": own}


class PhaseRecord(Scores):
    """One phase: its images' distance by the run's `selection`, their scores, and its course.

    `curve` has a row a step and a distance a restart, by the phase's own distance and of its own
    replay: smoothed by `smoothing`, or exact where that is 0. None: not known, in old records.
    """

    name: str
    distance: Number
    curve: list[list[Number]]
    smoothing: float | None = None
    restarts: list[int]
    best_restart: int
    dropped: list[int]
    evaluations: int
    seconds: float


class ImageRecord(Scores):
    """One private image of the batch, and the reconstruction that was matched with it.

    `label` is the true one, `label_used` what the attack replayed with, `prior_label` what a
    conditional prior was asked for. `original_size` is its file's width and height, before it was
    cropped to the centre square and resized; null where that is not known.
    """

    name: str
    sha256: str
    label: int
    label_used: int
    prior_label: int | None
    original_size: tuple[int, int] | None = None


class Record(Scores):
    """One trial. Its distance and scores are of the answer; phases and images have their own.

    `selection` is the measure by which restarts, phases and the answer were chosen, and which every
    `distance` here is of; None in records before version 3, whose phases were each measured by
    their own. `defenses` are the client's; `ledger` lists all that the attacker was granted; None
    is: not granted.
    """

    schema_version: int = 4
    image: str
    images: list[ImageRecord]
    attack: str
    preset: str
    distance: Number
    selection: str | None = None
    phase: str
    seconds: float
    evaluations: int
    seed: int
    interrupted: bool
    dropped: list[int]
    at_once: int = 1
    label_source: str
    label_hypotheses: int
    defenses: list[str]
    ledger: dict[str, object]
    victim: dict[str, object]
    settings: dict[str, object]
    phases: list[PhaseRecord]
    device: str
    threads: int
    tf32: bool | None = None
    peak_memory_bytes: int | None
    versions: dict[str, str]
    created: str

    @field_validator("ledger")
    @classmethod
    def _renamed(cls, ledger: dict[str, object]) -> dict[str, object]:
        """With the attacker's name of today."""
        attacker = ledger.get("attacker")
        if isinstance(attacker, str) and attacker in ATTACKERS:
            return ledger | {"attacker": ATTACKERS[attacker]}
        return ledger


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What came of a trial: its record and its pictures, (B, C, H, W) in [0, 1], in one order."""

    record: Record
    private: Float[Tensor, "B C H W"]
    answer: Float[Tensor, "B C H W"]
    phases: tuple[Float[Tensor, "B C H W"], ...]
