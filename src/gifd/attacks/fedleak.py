"""FedLeak: partial gradient matching, gradient regularisation and a deep prior."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given, is_ours, kept, switched_on
from gifd.search import (
    DeepPrior,
    GradientRegularized,
    Measure,
    PartialMatching,
    Phase,
    TotalVariation,
)

REFERENCE = "Fan et al., Boosting Gradient Leakage Attacks (FedLeak), USENIX Security 2025"


def fedleak(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    curvature: float | None = None,
    best: bool | None = None,
) -> Attack:
    """The weights of an untrained network; partial matching and gradient regularisation.

    The network's images must match the update in its largest half.

    `paper`: 20,000 evaluations, two per step of AdamW at learning rate 0.01 with cosine decay,
    on `sum_l mean |u_l - v_l| + 1 - cos(u_l, v_l) + 1e-5 TV`, one restart, no pre-trained prior:
    the settings of the published code. `gifd-paper` is the same: GIFD's paper does not compare it.

    Args:
        preset: see above; 'strongest' is the paper plus the extensions below.
        restarts: 1 by default.
        curvature: ours: width of the smoothed curvature of the replay (`gifd.search.curvature`).
            4 in 'strongest'.
        best: ours: keep each restart's best iterate, not its last. In 'strongest'.

    Source: Fan et al., Boosting Gradient Leakage Attacks (FedLeak), USENIX Security 2025,
    arXiv:2506.08435.

    Differs from that code: labels are granted or inferred, not taken from the truth; the answer is
    not median-filtered; no spectral norm (see `DeepPrior`).
    """
    ours = is_ours(preset)
    curvature, best = given(curvature, 4.0 if ours else 0.0), given(best, ours)
    phase = Phase(
        name="deep prior",
        space=DeepPrior(),
        steps=20_000,
        optimizer=GradientRegularized(),
        distance=PartialMatching(),
        regularizers=(TotalVariation(weight=1e-5),),
        keeps=kept(best),
        curvature=curvature,
    )
    return Attack(
        name="fedleak",
        preset=preset,
        reference=REFERENCE,
        phases=(phase,),
        restarts=given(restarts, 1),
        selection=Measure(distance=PartialMatching()),
        extensions=switched_on(curvature=curvature, best=best),
    )
