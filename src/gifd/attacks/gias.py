"""Gradient Inversion in Alternative Spaces (GIAS): a latent, then the generator's own weights."""

from __future__ import annotations

from gifd.attacks.attack import Attack, expect_prior
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.priors.generator import IMAGE, Generator
from gifd.search import Adam, Latent, Phase, StepDecay, TotalVariation, Weights

REFERENCE = "Jeon et al., Gradient Inversion with Generative Image Prior, NeurIPS 2021"
STRONGEST = Extensions(regression=1.0, best=1.0)


def gias(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """Search the latent, then for each image the weights of a generator of its own.

    Noise maps are drawn and stay as they are.

    `paper`: 1,000 steps at learning rate 0.03 in the latent, then 8,000 at 1e-3 in the weights,
    both Adam with tenfold decay at 3/8, 5/8, 7/8 on `1 - cos + 1e-6 TV`; 3 restarts, of which
    the best latent goes on to the weights. `gifd-paper`: TV 1e-4, 4 restarts, and 1e-5 in the
    weights of a BigGAN.

    `strongest` begins at a regression (`gifd.search.Regression`) and keeps the best iterates.

    Differs from the official code: it sends the best latent into as many weight searches as
    there were restarts, which are then all the same; here it is one.
    """
    expect_prior(prior)
    chosen = choose(preset, STRONGEST, extensions).only("regression", "best")
    compared = preset == "gifd-paper"
    weight_lr = 1e-5 if compared and prior.family == "biggan-deep" else 1e-3
    variation = (TotalVariation(weight=1e-4 if compared else 1e-6),)
    phases = (
        *chosen.opening(1000),
        Phase(
            name="latent",
            space=Latent(only=(IMAGE,)),
            steps=1000,
            optimizer=Adam(lr=0.03, schedule=StepDecay()),
            regularizers=variation,
            keeps=chosen.keeps,
            keep=1,
        ),
        Phase(
            name="weights",
            space=Weights(),
            steps=8000,
            optimizer=Adam(lr=weight_lr, schedule=StepDecay()),
            regularizers=variation,
            keeps=chosen.keeps,
        ),
    )
    return Attack(
        name="gias",
        preset=preset,
        reference=REFERENCE,
        phases=phases,
        restarts=(4 if compared else 3) if restarts is None else restarts,
        prior=prior,
        extensions=chosen.switched_on(),
    )
