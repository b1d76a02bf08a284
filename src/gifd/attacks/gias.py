"""Gradient Inversion in Alternative Spaces (GIAS): the latent, then the generator's weights."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import (
    Preset,
    expect_prior,
    given,
    guessed_first,
    is_ours,
    kept,
    switched_on,
)
from gifd.priors.generator import IMAGE, Generator
from gifd.search import Adam, Latent, Measure, Phase, StepDecay, TotalVariation, Weights

REFERENCE = "Jeon et al., Gradient Inversion with Generative Image Prior, NeurIPS 2021"
STEPS = 1000


def gias(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    regression: float | None = None,
    best: bool | None = None,
) -> Attack:
    """The latent, then the generator's weights, separately for each image.

    Noise maps are random and fixed.

    `paper`: 1,000 steps at learning rate 0.03 in the latent, then 8,000 at 1e-3 in the weights,
    both by Adam with tenfold decay at 3/8, 5/8, 7/8 on `1 - cos + 1e-6 TV`; 3 restarts, the best
    of which enters the weight phase. `gifd-paper`: TV 1e-4, 4 restarts, and learning rate 1e-5 in
    the weights of a BigGAN.

    Args:
        prior: the generator.
        preset: see above; 'strongest' is the paper plus the extensions below.
        restarts: by default the preset's.
        regression: ours: begin at a regression's estimate (`gifd.search.Regression`); its cost
            as a share of the latent's steps. 1 in 'strongest'.
        best: ours: keep each restart's best iterate of a phase, not its last. In 'strongest'.

    Source: Jeon et al., Gradient Inversion with Generative Image Prior, NeurIPS 2021.

    Differs from the official code: it begins as many identical weight searches at the best
    latent as there were restarts; here it is one.
    """
    expect_prior(prior)
    ours, compared = is_ours(preset), preset == "gifd-paper"
    regression, best = given(regression, 1.0 if ours else 0.0), given(best, ours)
    weight_lr = 1e-5 if compared and prior.family == "biggan-deep" else 1e-3
    variation = (TotalVariation(weight=1e-4 if compared else 1e-6),)
    phases = (
        *guessed_first(round(STEPS * regression), Measure()),
        Phase(
            name="latent",
            space=Latent(only=(IMAGE,)),
            steps=STEPS,
            optimizer=Adam(lr=0.03, schedule=StepDecay()),
            regularizers=variation,
            keeps=kept(best),
            keep=1,
        ),
        Phase(
            name="weights",
            space=Weights(),
            steps=8 * STEPS,
            optimizer=Adam(lr=weight_lr, schedule=StepDecay()),
            regularizers=variation,
            keeps=kept(best),
        ),
    )
    return Attack(
        name="gias",
        preset=preset,
        reference=REFERENCE,
        phases=phases,
        restarts=given(restarts, 4 if compared else 3),
        prior=prior,
        extensions=switched_on(regression=regression, best=best),
    )
