"""Generative Gradient Leakage (GGL): a prior's latent by CMA-ES, without gradients."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, expect_prior, given, guessed_first, is_ours, switched_on
from gifd.priors.generator import IMAGE, Generator
from gifd.search import CMAES, Latent, LatentDivergence, Measure, Phase, Squared

REFERENCE = "Li et al., Generative Gradient Leakage (GGL), CVPR 2022, arXiv:2203.15696"


def ggl(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    regression: float | None = None,
) -> Attack:
    """The latent by CMA-ES, without gradients; squared distance and 0.1 KL.

    `paper`: 25,000 evaluations in populations of 18 (the strategy's default for 128 variables),
    one restart. `gifd-paper`: 800 populations of 50, four restarts.

    Noise maps are not searched. As in GIFD's code, the divergence from the standard normal is
    omitted for a StyleGAN2, whose w is not normal.

    Args:
        prior: the generator.
        preset: see above; 'strongest' is the paper plus the extension below.
        restarts: by default the preset's.
        regression: ours: begin at a regression's estimate (`gifd.search.Regression`); its cost
            in thousands of evaluations. The search then begins with a third of the spread, to
            stay near it. 1 in 'strongest'.

    Source: Li et al., Generative Gradient Leakage (GGL), CVPR 2022, arXiv:2203.15696.

    Differs from the official code: the start is drawn from the prior, not from U[0, 1]; its
    CMA-ES runs squash the latent by tanh instead of using the divergence.
    """
    expect_prior(prior)
    compared = preset == "gifd-paper"
    regression = given(regression, 1.0 if is_ours(preset) else 0.0)
    normal = prior.family != "stylegan2"
    measure = Measure(distance=Squared(mean=True))
    phases = (
        *guessed_first(round(1000 * regression), measure),
        Phase(
            name="latent",
            space=Latent(only=(IMAGE,)),
            steps=800 * 50 if compared else 25_000,
            optimizer=CMAES(population=50 if compared else 18, sigma=1 / 3 if regression else 1.0),
            distance=measure.distance,
            regularizers=(LatentDivergence(weight=0.1),) if normal else (),
        ),
    )
    return Attack(
        name="ggl",
        preset=preset,
        reference=REFERENCE,
        phases=phases,
        restarts=given(restarts, 4 if compared else 1),
        prior=prior,
        selection=measure,
        extensions=switched_on(regression=regression),
    )
