"""GradInversion: pixels with batch-norm statistics and group consistency."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given, is_ours, kept, switched_on
from gifd.search import (
    Adam,
    BatchNormPrior,
    GroupConsistency,
    ImageNorm,
    Measure,
    Phase,
    Pixels,
    Regularizer,
    Squared,
    StepDecay,
    TotalVariation,
    WarmupCosine,
)

REFERENCE = "Yin et al., See through Gradients (GradInversion), CVPR 2021, arXiv:2104.07586"
MATCHING = 1e-3
"""The paper's weight of the squared distance. Ours is 1, so the other weights are divided by it:
Adam is invariant to the scale of an objective."""


def gradinversion(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    curvature: float | None = None,
) -> Attack:
    """Pixels with batch-norm statistics; each restart is pulled towards the mean of all.

    `paper`: 1e-3 squared distance + 1e-4 TV + 1e-6 norm + 0.1 batch norm + 0.01 group; 20,000
    steps of Adam at learning rate 0.1, 50 of warm-up, cosine decay, Langevin noise 0.2, 8
    restarts. The batch-norm term applies only if the ledger grants statistics.

    `gifd-paper`: mean squared distance + 1e-4 TV + 1e-6 norm + 0.01 group without registration,
    updated every 100 steps from step 500 on; 15,000 steps of Adam at 0.1, tenfold decay at 3/8,
    5/8, 7/8, 4 restarts, no batch norm, no noise.

    Args:
        preset: see above; 'strongest' is the paper plus the extension below.
        restarts: by default the preset's.
        curvature: ours: width of the smoothed curvature of the replay (`gifd.search.curvature`).
            4 in 'strongest'.

    Source: Yin et al., See through Gradients (GradInversion), CVPR 2021, arXiv:2104.07586.

    Differs from the paper: see `GroupConsistency`. There is no official code; the batch-norm
    term is breaching's, the scales of norm and group are those of GIFD's code.
    """
    curvature = given(curvature, 4.0 if is_ours(preset) else 0.0)
    compared = preset == "gifd-paper"
    scale = 1.0 if compared else MATCHING
    regularizers: tuple[Regularizer, ...] = (
        TotalVariation(weight=1e-4 / scale),
        ImageNorm(weight=1e-6 / scale),
        GroupConsistency(weight=0.01 / scale, register=not compared),
    )
    if compared:
        optimizer = Adam(lr=0.1, schedule=StepDecay())
    else:
        regularizers += (BatchNormPrior(weight=0.1 / scale),)
        optimizer = Adam(lr=0.1, schedule=WarmupCosine(warmup=1 / 400, decay=1.0), noise=0.2)
    distance = Squared(mean=compared)
    pixels = Phase(
        name="pixels",
        space=Pixels(),
        steps=15_000 if compared else 20_000,
        optimizer=optimizer,
        distance=distance,
        regularizers=regularizers,
        keeps=kept(best=not compared),
        curvature=curvature,
    )
    return Attack(
        name="gradinversion",
        preset=preset,
        reference=REFERENCE,
        phases=(pixels,),
        restarts=given(restarts, 4 if compared else 8),
        selection=Measure(distance=distance),
        extensions=switched_on(curvature=curvature),
    )
