"""Generative Gradient Inversion over Feature Domains (GIFD)."""

from __future__ import annotations

from collections.abc import Mapping

from gifd.attacks.attack import Attack, expect_prior
from gifd.attacks.domains import Domains
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.errors import InputError
from gifd.priors.generator import Generator
from gifd.search import (
    Adam,
    Feature,
    ImageNorm,
    Latent,
    Measure,
    Phase,
    Pixels,
    Projection,
    Space,
    TotalVariation,
)

STEPS = 1000
REFERENCE = "Fang et al., GIFD, ICCV 2023, arXiv:2308.04699"
STRONGEST = Extensions(smoothing=0.3, variation=3e-3, consensus=1.0, best=1.0)


def gifd(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    features: int | None = None,
    radius: float | None = None,
    radius_step: float | None = None,
    drop_skip: bool = False,
    extensions: Extensions | None = None,
) -> Attack:
    """Search the latent, then the features behind stages 1..K, each from where the last ended.

    For k = 1..K the variable is h_k, entered at h_k^0 = G_k(h_(k-1)) and after every step
    projected onto `|h_k - h_k^0|_1 <= r_k`, `r_k = radius + (k - 1) * radius_step`. Every
    phase: 1,000 steps of Adam at learning rate 0.1, warm-up and cosine decay, on
    `1 - cos + 1e-4 TV + 1e-6 |x|_2 / (H W)`. A phase ends at its last iterate, where the next one
    begins (in `strongest` at its best); of all ends the one with the least distance answers. The
    radii are the paper's for its two generators, and ours for others (`DOMAINS`).

    Args:
        prior: the generator.
        preset: 'paper' (and 'gifd-paper', which is the same), or 'strongest': the paper plus
            the extensions below.
        restarts: R; the paper's 4 by default.
        features: K; by default the generator's in `DOMAINS`.
        radius: r_1, likewise.
        radius_step: the radii's growth, likewise.
        drop_skip: lose StyleGAN2's RGB skip at every cut, as the official code does: only to
            reproduce its numbers.
        extensions: in place of the preset's own. A smoothed replay finishes what an exact one
            began: the domains up to K / 2 are searched exactly.

    Differs from the official code: all of the state is carried across a cut, the RGB skip too;
    the schedule is read at the end of a step (`gifd.search.Adam`); every noise map still to come
    is searched, there the first 5 + 2k; the answer is the best restart's image, there the last
    restart's with the best one's distance.
    """
    expect_prior(prior)
    count = 4 if restarts is None else restarts
    chosen = choose(preset, STRONGEST, extensions).among(count)
    if drop_skip and prior.family != "stylegan2":
        raise InputError(f"expected a StyleGAN2 to drop the skip of, got {prior}")
    domains = Domains.of(prior, features=features, radius=radius, growth=radius_step)
    dropped = ("rgb",) if drop_skip else ()
    exact = chosen.without(["smoothing"])
    phases = list(exact.opening(STEPS))
    for k in range(domains.features + 1):
        finishing = 2 * k > domains.features
        space = Feature(k, drop=dropped) if k else Latent()
        limits = domains.limits(prior, k, chosen.share)
        name = f"feature {k}" if k else "latent"
        phases.append(_phase(name, space, chosen if finishing else exact, limits))
    if chosen.pixels > 0:
        phases.append(_pixels(chosen))
    return Attack(
        name="gifd",
        preset=preset,
        reference=REFERENCE,
        phases=chosen.closing(phases),
        restarts=count,
        prior=prior,
        selection=Measure(distance=chosen.matching),
        extensions=chosen.switched_on(),
    )


def _phase(name: str, space: Space, chosen: Extensions, limits: Mapping[str, Projection]) -> Phase:
    feature = isinstance(space, Feature)
    variation = chosen.variation if feature and chosen.variation > 0 else 1e-4
    return Phase(
        name=name,
        space=space,
        steps=STEPS,
        optimizer=Adam(lr=0.1),
        distance=chosen.matching,
        regularizers=(TotalVariation(weight=variation), ImageNorm(weight=1e-6)),
        constraints=limits,
        keeps=chosen.keeps,
        curvature=chosen.curvature,
        smoothing=chosen.smoothing,
    )


def _pixels(chosen: Extensions) -> Phase:
    return Phase(
        name="pixels",
        space=Pixels(),
        steps=max(1, round(STEPS * chosen.pixels)),
        optimizer=Adam(lr=0.02),
        distance=chosen.matching,
        regularizers=(TotalVariation(weight=1e-2),),
        curvature=chosen.curvature,
        smoothing=chosen.smoothing,
    )
