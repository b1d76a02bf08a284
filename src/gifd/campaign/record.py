"""Record: the settings and results of one trial, as one JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Shaped
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from gifd.campaign.renamed import ATTACKERS

Number = float | None
"""None for infinity and NaN, which JSON does not have."""


Label = int | list[float] | None
"""A class, or numbers; None for more than fit a record."""


def label(target: Shaped[Tensor, "*T"]) -> Label:
    """What one image's outputs are compared with; numbers to four digits behind the point."""
    if target.ndim == 0 and not target.is_floating_point():
        return int(target)
    if target.numel() > _MOST:
        return None
    return [round(float(value), 4) for value in target.flatten()]


_MOST = 64


def finite(value: float) -> Number:
    """The value, or None."""
    return value if math.isfinite(value) else None


class Scores(BaseModel):
    """The value of each metric; null if it was not computed or is infinite.

    PSNR (in dB) and SSIM: higher is better. MSE (on [0, 1]), ST-LPIPS and LPIPS: lower is better.
    For a batch they are means over its pairs of private image and reconstruction.
    `own_metrics` are the user's own, by name.
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
    """One phase: distance by the run's `selection`, scores, and the curve of its search.

    `curve` has one row per step and one column per restart, by the phase's own distance and
    replay: smoothed by `smoothing`, or exact if that is 0; None in old records: unknown.
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
    """One private image and the reconstruction that was assigned to it.

    `label` is the true label, `label_used` that of the attack's replay: a class, a list of numbers,
    or null if there are more than fit (see `label`). `prior_label` is the class given to a
    conditional prior. `original_size` is the width and height of the file, before it
    was cropped to the centre square and resized; null if unknown. Of a captured update the private
    image's hash and label are unknown.
    """

    name: str
    sha256: str | None
    label: Label
    label_used: Label
    prior_label: int | None
    original_size: tuple[int, int] | None = None


class Evidence(BaseModel):
    """What can be said about a captured update and its reconstruction without the private images.

    `update` is its file, and `notes` say what was changed so that it fits the model. `misfit`,
    `explained` and `reason` are those of the test of fit (`gifd.audit.fit`), with `simulated`
    clients; `considered` are the misfits of all assumptions about the client that were compared.
    `null_distances` are the matching distances of unrelated images. `agreement` is the
    mean PSNR of the other restarts' images to the answer, in dB; null with one restart.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    update: str
    notes: list[str]
    misfit: Number
    explained: bool
    reason: str
    simulated: int
    considered: dict[str, Number]
    null_distances: list[Number]
    agreement: Number


class Record(Scores):
    """One trial. Its distance and scores are the answer's; phases and images have their own.

    `selection` is the measure that selected restarts, phases and the answer, and of every
    `distance` here; None in records before version 3, where each phase used its own. `defenses`
    are the client's; `ledger` is everything granted to the attacker; None in it: not granted.
    `evidence` belongs to a captured update, whose private images may be unknown: then `truth` is
    false, and there are no scores.
    """

    schema_version: int = 5
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
    evidence: Evidence | None = None
    truth: bool = True
    device: str
    threads: int
    tf32: bool | None = None
    peak_memory_bytes: int | None
    versions: dict[str, str]
    created: str

    @field_validator("ledger")
    @classmethod
    def _renamed(cls, ledger: dict[str, object]) -> dict[str, object]:
        """With the attacker's present name."""
        attacker = ledger.get("attacker")
        if isinstance(attacker, str) and attacker in ATTACKERS:
            return ledger | {"attacker": ATTACKERS[attacker]}
        return ledger


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The result of a trial: record and pictures, (B, C, H, W) in [0, 1], in the same order.

    The private images are None where they are unknown.
    """

    record: Record
    private: Float[Tensor, "B C H W"] | None
    answer: Float[Tensor, "B C H W"]
    phases: tuple[Float[Tensor, "B C H W"], ...]
