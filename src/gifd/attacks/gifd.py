"""Generative Gradient Inversion over Feature Domains (GIFD)."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.domains import Domains
from gifd.attacks.presets import (
    Preset,
    agreed_last,
    expect_prior,
    given,
    is_ours,
    kept,
    switched_on,
)
from gifd.errors import InputError
from gifd.priors.generator import Generator
from gifd.search import Adam, Feature, ImageNorm, Latent, Phase, TotalVariation

STEPS = 1000
REFERENCE = "Fang et al., GIFD, ICCV 2023, arXiv:2308.04699"


def gifd(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    features: int | None = None,
    radius: float | None = None,
    radius_step: float | None = None,
    drop_skip: bool = False,
    smoothing: float | None = None,
    variation: float | None = None,
    consensus: float | None = None,
    best: bool | None = None,
) -> Attack:
    """The latent, then feature domains in L1 balls; the least distance answers.

    Searches the latent, then the features after stages 1..K, each from the end of the last phase.
    For k = 1..K the variable is h_k. It begins at h_k^0 = G_k(h_(k-1)) and is projected onto
    `|h_k - h_k^0|_1 <= r_k`, `r_k = radius + (k - 1) * radius_step`, after every step. Each phase
    takes 1,000 steps of Adam at learning rate 0.1 with warm-up and cosine decay, on
    `1 - cos + 1e-4 TV + 1e-6 |x|_2 / (H W)`. It ends at its last iterate (in `strongest` at its
    best), where the next one begins; the end with the least distance is the answer. The radii
    are the paper's for its two generators, and ours for others (`DOMAINS`).

    Args:
        prior: the generator.
        preset: 'paper' (and 'gifd-paper', which is the same), or 'strongest': the paper plus
            the extensions below.
        restarts: R; the paper's 4 by default.
        features: K; by default as in `DOMAINS`.
        radius: r_1; by default as in `DOMAINS`.
        radius_step: growth of the radius per phase; by default as in `DOMAINS`.
        drop_skip: drop StyleGAN2's RGB skip at every cut, only to reproduce the official code.
        smoothing: ours: width of the smoothed replay (`gifd.search.smoothing`) in the domains
            after K / 2, so that it finishes what an exact search began. 0.3 in 'strongest'.
        variation: ours: weight of the total variation in the feature domains, instead of the
            paper's. 3e-3 in 'strongest'; 0 is the paper's.
        consensus: ours: run the last phase once more from the consensus of the restarts
            (`gifd.search.Consensus`); its steps as a share of a phase's. 1 in 'strongest'; needs
            two restarts.
        best: ours: keep each restart's best iterate of a phase, not its last. In 'strongest'.

    Source: Fang et al., GIFD, ICCV 2023, arXiv:2308.04699.

    Differs from the official code: the whole state is carried across a cut, also the RGB skip;
    the schedule is read at the end of a step (`gifd.search.Adam`); all remaining noise maps are
    searched, there the first 5 + 2k; the answer is the best restart's image, there the last
    restart's with the best one's distance.
    """
    expect_prior(prior)
    if drop_skip and prior.family != "stylegan2":
        raise InputError(f"expected a StyleGAN2 to drop the skip of, got {prior}")
    ours, count = is_ours(preset), given(restarts, 4)
    smoothing = given(smoothing, 0.3 if ours else 0.0)
    variation = given(variation, 3e-3 if ours else 0.0)
    consensus = given(consensus, 1.0 if ours else 0.0) if count > 1 else 0.0
    best = given(best, ours)
    domains = Domains.of(prior, features=features, radius=radius, growth=radius_step)
    phases = []
    for k in range(domains.features + 1):
        weight = variation if k and variation > 0 else 1e-4
        phases.append(
            Phase(
                name=f"feature {k}" if k else "latent",
                space=Feature(k, drop=("rgb",) if drop_skip else ()) if k else Latent(),
                steps=STEPS,
                optimizer=Adam(lr=0.1),
                regularizers=(TotalVariation(weight=weight), ImageNorm(weight=1e-6)),
                constraints=domains.limits(prior, k),
                keeps=kept(best),
                smoothing=smoothing if 2 * k > domains.features else 0.0,
            )
        )
    return Attack(
        name="gifd",
        preset=preset,
        reference=REFERENCE,
        phases=agreed_last(phases, consensus),
        restarts=count,
        prior=prior,
        extensions=switched_on(
            smoothing=smoothing, variation=variation, consensus=consensus, best=best
        ),
    )
