"""Inverting Gradients (IG): cosine matching of pixels with total variation."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.search import Adam, Phase, Pixels, StepDecay, TotalVariation

REFERENCE = "Geiping et al., Inverting Gradients, NeurIPS 2020, arXiv:2003.14053"
STRONGEST = Extensions(smoothing=0.3, variation=0.01, best=1.0)


def ig(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """Search the pixels for the least cosine distance plus total variation.

    `paper`: signed Adam at learning rate 0.1 in normalised units, divided by ten after 3/8,
    5/8 and 7/8 of 24,000 steps, TV 0.1, one start from normal noise, clipped to images: the
    settings of the authors' code for photographs.

    `gifd-paper`: unsigned, TV 1e-4, 15,000 steps, 4 restarts.

    `strongest`: a smoothed replay, whose slope can be trusted with a tenth of the total variation.
    `curvature` may be had in its place; the other extensions do not concern it. It keeps the best
    iterate, the papers the last.

    Differs from the official code: the answer is the last iterate whose distance is known, a step
    before the code's.
    """
    chosen = choose(preset, STRONGEST, extensions).only(
        "smoothing", "curvature", "variation", "best"
    )
    compared = preset == "gifd-paper"
    variation = chosen.variation or (1e-4 if compared else 0.1)
    pixels = Phase(
        name="pixels",
        space=Pixels(),
        steps=15_000 if compared else 24_000,
        optimizer=Adam(lr=0.1, schedule=StepDecay(), signed=not compared),
        regularizers=(TotalVariation(weight=variation),),
        keeps=chosen.keeps,
        curvature=chosen.curvature,
        smoothing=chosen.smoothing,
    )
    return Attack(
        name="ig",
        preset=preset,
        reference=REFERENCE,
        phases=(pixels,),
        restarts=(4 if compared else 1) if restarts is None else restarts,
        extensions=chosen.switched_on(),
    )
