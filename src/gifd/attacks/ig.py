"""Inverting Gradients (IG): cosine matching of pixels with total variation."""

from __future__ import annotations

import dataclasses

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import NONE, Extensions, Preset
from gifd.inversion import Adam, Phase, Pixels, StepDecay, TotalVariation

STEPS = 24_000
REFERENCE = "Geiping et al., Inverting Gradients, NeurIPS 2020, arXiv:2003.14053"
STRONGEST = Extensions(curvature=4.0, length=0.2)


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

    `strongest` adds smoothed curvature, and spends the last quarter on matching the update's
    length too, which sets contrast and brightness; the other extensions do not concern it.

    Differs from the official code: the best iterate is kept, not the last.
    """
    chosen = NONE if preset == "paper" else STRONGEST
    if extensions is not None:
        chosen = extensions.only("curvature", "length")
    variation = TotalVariation(weight=0.1)
    pixels = Phase(
        name="pixels",
        space=Pixels(),
        steps=STEPS,
        optimizer=Adam(lr=0.1, schedule=StepDecay(), signed=True),
        regularizers=(variation,),
        curvature=chosen.curvature,
    )
    phases: tuple[Phase, ...] = (pixels,)
    if chosen.length > 0:
        lengths = Phase(
            name="pixels and length",
            space=Pixels(),
            steps=STEPS // 4,
            optimizer=Adam(lr=0.03),
            distance=chosen.matching,
            regularizers=(variation,),
            curvature=chosen.curvature,
        )
        phases = (dataclasses.replace(pixels, steps=STEPS - lengths.steps), lengths)
    return Attack(
        name="ig",
        preset=preset,
        reference=REFERENCE,
        phases=phases,
        restarts=1 if restarts is None else restarts,
        matching=chosen.matching,
        extensions=chosen.switched_on(),
    )
