"""Inverting Gradients (IG): pixels by cosine distance and total variation."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given, is_ours, kept, switched_on
from gifd.search import Adam, Phase, Pixels, StepDecay, TotalVariation

REFERENCE = "Geiping et al., Inverting Gradients, NeurIPS 2020, arXiv:2003.14053"


def ig(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    smoothing: float | None = None,
    variation: float | None = None,
    best: bool | None = None,
) -> Attack:
    """Pixels by cosine distance and total variation.

    `paper`: signed Adam at learning rate 0.1 in normalised units, divided by ten after 3/8,
    5/8 and 7/8 of 24,000 steps, TV 0.1, one restart from normal noise, clipped to [0, 1]: the
    settings of the authors' code for photographs.

    `gifd-paper`: unsigned, TV 1e-4, 15,000 steps, 4 restarts.

    Args:
        preset: see above; 'strongest' is the paper plus the extensions below.
        restarts: by default the preset's.
        smoothing: ours: width of the smoothed replay (`gifd.search.smoothing`), whose gradient
            needs less total variation. 0.3 in 'strongest'.
        variation: ours: weight of the total variation, instead of the paper's. 0.01 in
            'strongest'; 0 is the paper's.
        best: ours: keep each restart's best iterate, not its last. In 'strongest'.

    Source: Geiping et al., Inverting Gradients, NeurIPS 2020, arXiv:2003.14053.

    Differs from the official code: the answer is the last evaluated iterate, one step before the
    code's.
    """
    ours, compared = is_ours(preset), preset == "gifd-paper"
    smoothing = given(smoothing, 0.3 if ours else 0.0)
    variation = given(variation, 0.01 if ours else 0.0)
    best = given(best, ours)
    weight = variation if variation > 0 else 1e-4 if compared else 0.1
    pixels = Phase(
        name="pixels",
        space=Pixels(),
        steps=15_000 if compared else 24_000,
        optimizer=Adam(lr=0.1, schedule=StepDecay(), signed=not compared),
        regularizers=(TotalVariation(weight=weight),),
        keeps=kept(best),
        smoothing=smoothing,
    )
    return Attack(
        name="ig",
        preset=preset,
        reference=REFERENCE,
        phases=(pixels,),
        restarts=given(restarts, 4 if compared else 1),
        extensions=switched_on(smoothing=smoothing, variation=variation, best=best),
    )
