"""Generative Gradient Inversion over Feature Domains (GIFD) and its ablations."""

from __future__ import annotations

import dataclasses
import math

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.errors import InputError
from gifd.inversion import (
    Adam,
    Feature,
    ImageNorm,
    L1Ball,
    Latent,
    Phase,
    Pixels,
    RandomSearch,
    Space,
    Sphere,
    TotalVariation,
)
from gifd.priors.generator import IMAGE, Generator

STEPS = 1000
REFERENCE = "Fang et al., GIFD, ICCV 2023, arXiv:2308.04699"
STRONGEST = Extensions(scouting=1.0, curvature=1.0, length=0.2, share=0.5, variation=1e-2)
_OF_THE_LATENT = ("scouting", "curvature", "length")
STRONGEST_LATENT = STRONGEST.only(*_OF_THE_LATENT)


RADII = {"stylegan2": (2000.0, 1000.0), "digiface-dcgan": (150.0, 200.0)}
"""r_1 and its growth for each generator, as the paper chooses them per generator.

StyleGAN2's are the paper's. The DCGAN is not in the paper; its features' mean L1 norms are 921,
1226 and 3886, so that the paper's radii would hold nothing. Its own are about 15 % of those.
"""


def gifd(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    features: int | None = None,
    radius: float | None = None,
    radius_step: float | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """Search the latent, then the features behind stages 1..K, each from where the last ended.

    For k = 1..K the variable is h_k, entered at h_k^0 = G_k(h_(k-1)) and after every step
    projected onto `|h_k - h_k^0|_1 <= r_k`, `r_k = radius + (k - 1) * radius_step`. Every
    phase: 1,000 steps of Adam at learning rate 0.1, warm-up and cosine decay, on
    `1 - cos + 1e-4 TV + 1e-6 |x|_2 / (H W)`. The phase with the least distance answers.

    Args:
        prior: the generator.
        preset: 'paper', or 'strongest': the paper plus the extensions below.
        restarts: R; the paper's 4 by default.
        features: K; by default half of the stages, rounded up (the paper: 4 of StyleGAN2's
            8 blocks).
        radius: r_1; by default the generator's in `RADII`, or StyleGAN2's.
        radius_step: the radii's growth, likewise.
        extensions: in place of the preset's own.

    Differs from the official code: each phase starts at the best iterate of the one before,
    not at its last, and the answer is the best iterate of the chosen phase. All of the
    state is carried across a cut.
    """
    chosen = choose(preset, STRONGEST, extensions)
    depth = features if features is not None else math.ceil(len(prior) / 2)
    if not 1 <= depth <= len(prior):
        raise InputError(f"expected 1 to {len(prior)} feature domains, got {depth}")
    first, growth = RADII.get(prior.name, RADII["stylegan2"])
    first = first if radius is None else radius
    growth = growth if radius_step is None else radius_step
    phases = [_scouting(chosen)] if chosen.scouting > 0 else []
    phases.append(_phase("latent", Latent(), chosen))
    for k in range(1, depth + 1):
        ball = L1Ball(radius=first + (k - 1) * growth)
        if chosen.share > 0:
            ball = L1Ball(share=chosen.share)
        phases.append(_phase(f"feature {k}", Feature(k), chosen, ball))
    if chosen.pixels > 0:
        phases.append(_pixels(chosen))
    return Attack(
        name="gifd",
        preset=preset,
        reference=REFERENCE,
        phases=tuple(phases),
        restarts=4 if restarts is None else restarts,
        prior=prior,
        matching=chosen.matching,
        extensions=chosen.switched_on(),
    )


def gifd_latent(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """The ablation that searches the latent alone, with the steps that GIFD spends on all."""
    chosen = choose(preset, STRONGEST_LATENT, extensions).only(*_OF_THE_LATENT)
    full = gifd(prior, preset=preset, restarts=restarts, extensions=chosen)
    *scouting, latent = (phase for phase in full.phases if isinstance(phase.space, Latent))
    steps = sum(phase.steps for phase in full.phases if phase not in scouting)
    phases = (*scouting, dataclasses.replace(latent, steps=steps))
    return dataclasses.replace(full, name="gifd-latent", phases=phases)


def gifd_last(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """The ablation in which the last phase answers, whatever its distance."""
    full = gifd(prior, preset=preset, restarts=restarts, extensions=extensions)
    return dataclasses.replace(full, name="gifd-last", answer="last")


def _phase(name: str, space: Space, chosen: Extensions, ball: L1Ball | None = None) -> Phase:
    variation = 1e-4
    if ball is not None and chosen.variation > 0:
        variation = chosen.variation
    return Phase(
        name=name,
        space=space,
        steps=STEPS,
        optimizer=Adam(lr=0.1),
        distance=chosen.matching,
        regularizers=(TotalVariation(weight=variation), ImageNorm(weight=1e-6)),
        constraints={IMAGE: ball if ball is not None else Sphere()},
        curvature=chosen.curvature,
    )


def _scouting(chosen: Extensions) -> Phase:
    return Phase(
        name="scouting",
        space=Latent(),
        steps=max(1, round(STEPS * chosen.scouting)),
        optimizer=RandomSearch(),
        distance=chosen.matching,
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
    )
