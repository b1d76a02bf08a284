"""FedLeak: partial gradient matching and gradient regularisation, images drawn by a deep prior."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.search import (
    DeepPrior,
    GradientRegularized,
    Measure,
    PartialMatching,
    Phase,
    TotalVariation,
)

REFERENCE = "Fan et al., Boosting Gradient Leakage Attacks (FedLeak), USENIX Security 2025"
STRONGEST = Extensions(curvature=4.0, best=1.0)


def fedleak(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """Search the weights of an untrained network whose images' update matches in its largest half.

    `paper`: 10,000 steps of two evaluations each, AdamW at learning rate 0.01 with cosine decay
    on `sum_l mean |u_l - v_l| + 1 - cos(u_l, v_l) + 1e-5 TV`, one restart, no pre-trained prior:
    the settings of the code published with it. `gifd-paper` is the same: that paper does not
    compare it.

    `strongest` adds smoothed curvature and keeps the best iterate, not the last.

    Differs from that code: labels are granted or inferred, not taken from the truth; the answer is
    not median-filtered; no spectral norm (see `DeepPrior`).
    """
    chosen = choose(preset, STRONGEST, extensions).only("curvature", "best")
    phase = Phase(
        name="deep prior",
        space=DeepPrior(),
        steps=10_000,
        optimizer=GradientRegularized(),
        distance=PartialMatching(),
        regularizers=(TotalVariation(weight=1e-5),),
        keeps=chosen.keeps,
        curvature=chosen.curvature,
    )
    return Attack(
        name="fedleak",
        preset=preset,
        reference=REFERENCE,
        phases=(phase,),
        restarts=1 if restarts is None else restarts,
        selection=Measure(distance=PartialMatching()),
        extensions=chosen.switched_on(),
    )
