"""Generative Gradient Leakage (GGL): a prior's latent, searched without gradients."""

from __future__ import annotations

from gifd.attacks.attack import Attack, expect_prior
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.priors.generator import IMAGE, Generator
from gifd.search import CMAES, Latent, LatentDivergence, Measure, Phase, Squared

REFERENCE = "Li et al., Generative Gradient Leakage (GGL), CVPR 2022, arXiv:2203.15696"
STRONGEST = Extensions(regression=1.0)


def ggl(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """Search the latent `x` by CMA-ES for the least mean squared distance plus 0.1 KL.

    `paper`: 25,000 evaluations in populations of 18 (the strategy's default for 128 numbers),
    one restart. `gifd-paper`: 800 populations of 50, four restarts.

    `strongest` begins at a regression (`gifd.search.Regression`) of 1,000 steps, and with a
    third of the spread, so as not to lose it at once.

    Noise maps are not searched. The divergence to the standard normal is left out for a
    StyleGAN2, whose w is not normal, as GIFD's code leaves it out.

    Differs from the official code: the start is drawn from the prior, not from U[0, 1]; its
    CMA-ES runs squash the latent by tanh in place of the divergence.
    """
    expect_prior(prior)
    chosen = choose(preset, STRONGEST, extensions).only("regression")
    compared = preset == "gifd-paper"
    normal = prior.family != "stylegan2"
    distance = Squared(mean=True)
    phases = (
        *chosen.opening(1000, distance),
        Phase(
            name="latent",
            space=Latent(only=(IMAGE,)),
            steps=800 * 50 if compared else 25_000,
            optimizer=CMAES(
                population=50 if compared else 18, sigma=1 / 3 if chosen.regression else 1.0
            ),
            distance=distance,
            regularizers=(LatentDivergence(weight=0.1),) if normal else (),
        ),
    )
    return Attack(
        name="ggl",
        preset=preset,
        reference=REFERENCE,
        phases=phases,
        restarts=(4 if compared else 1) if restarts is None else restarts,
        prior=prior,
        selection=Measure(distance=distance),
        extensions=chosen.switched_on(),
    )
