"""Record: what one trial was and what came of it, as one JSON object."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Number = float | None
"""JSON has no infinity and no NaN: they are null."""


class PhaseRecord(BaseModel):
    """One phase: its best image's distance and metrics, and how the search went."""

    model_config = ConfigDict(frozen=True)

    name: str
    distance: Number
    psnr: Number
    ssim: Number
    mse: Number
    stlpips: Number
    curve: list[list[Number]]
    restarts: list[int]
    best_restart: int
    dropped: list[int]
    evaluations: int
    seconds: float


class Record(BaseModel):
    """One trial. Distances and metrics are of the answer; the phases have their own.

    PSNR is in dB, higher is better, as is SSIM; MSE (on [0, 1]) and ST-LPIPS are better
    lower. `ledger` lists all that the attacker was granted; None is: not granted.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    image: str
    image_sha256: str
    attack: str
    preset: str
    psnr: Number
    ssim: Number
    mse: Number
    stlpips: Number
    lpips: Number = None
    distance: Number
    phase: str
    seconds: float
    evaluations: int
    seed: int
    interrupted: bool
    dropped: list[int]
    label: int
    label_used: int
    label_source: str
    prior_label: int | None = None
    ledger: dict[str, object]
    victim: dict[str, object]
    settings: dict[str, object]
    phases: list[PhaseRecord]
    device: str
    threads: int
    peak_memory_bytes: int | None
    versions: dict[str, str]
    created: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What came of a trial: its record and its pictures, (C, H, W) in [0, 1]."""

    record: Record
    private: Float[Tensor, "C H W"]
    answer: Float[Tensor, "C H W"]
    phases: tuple[Float[Tensor, "C H W"], ...]
