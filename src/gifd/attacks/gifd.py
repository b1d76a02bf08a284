"""Generative Gradient Inversion over Feature Domains (GIFD) and its ablations."""

from __future__ import annotations

import dataclasses
import math

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import NONE, Extensions, Preset
from gifd.errors import InputError
from gifd.inversion import (
    Adam,
    Cosine,
    Feature,
    ImageNorm,
    L1Ball,
    Latent,
    LayerCosine,
    Phase,
    Pixels,
    Space,
    Sphere,
    TotalVariation,
)
from gifd.priors.generator import IMAGE, Generator

REFERENCE = "Fang et al., GIFD, ICCV 2023, arXiv:2308.04699"
STRONGEST = Extensions(curvature=4.0, pixels=True, shares=0.5, pruning=1)


def gifd(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    features: int | None = None,
    radius: float = 2000.0,
    radius_step: float = 1000.0,
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
        radius: r_1; the paper's for both generators.
        radius_step: the radii's growth; the paper's for StyleGAN2.
        extensions: in place of the preset's own.

    Differs from the official code: each phase starts at the best iterate of the one before,
    not at its last, and the answer is the best iterate of the chosen phase. All of the
    state is carried across a cut.
    """
    chosen = _extensions(preset, extensions)
    depth = features if features is not None else math.ceil(len(prior) / 2)
    if not 1 <= depth <= len(prior):
        raise InputError(f"expected 1 to {len(prior)} feature domains, got {depth}")
    phases = [_phase("latent", Latent(), chosen)]
    for k in range(1, depth + 1):
        ball = L1Ball(radius=radius + (k - 1) * radius_step)
        if chosen.shares > 0:
            ball = L1Ball(share=chosen.shares)
        phases.append(_phase(f"feature {k}", Feature(k), chosen, ball))
    if chosen.pixels:
        phases.append(_pixels(chosen))
    return _attack("gifd", preset, chosen, phases, restarts, prior)


def gifd_latent(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """The ablation that searches the latent alone, with the steps that GIFD spends on all."""
    full = gifd(prior, preset=preset, restarts=restarts, extensions=extensions)
    steps = sum(phase.steps for phase in full.phases)
    latent = dataclasses.replace(full.phases[0], steps=steps, keep=None)
    return dataclasses.replace(full, name="gifd-latent", phases=(latent,))


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
    late = ball is not None and chosen.curriculum
    return Phase(
        name=name,
        space=space,
        steps=1000,
        optimizer=Adam(lr=0.1),
        distance=LayerCosine(norm=0.1) if late else Cosine(),
        regularizers=(TotalVariation(weight=1e-4), ImageNorm(weight=1e-6)),
        constraints={IMAGE: ball if ball is not None else Sphere()},
        curvature=chosen.curvature,
        keep=chosen.pruning or None if ball is None else None,
    )


def _pixels(chosen: Extensions) -> Phase:
    return Phase(
        name="pixels",
        space=Pixels(),
        steps=1000,
        optimizer=Adam(lr=0.02),
        distance=LayerCosine(norm=0.1) if chosen.curriculum else Cosine(),
        regularizers=(TotalVariation(weight=1e-2),),
        curvature=chosen.curvature,
    )


def _extensions(preset: Preset, given: Extensions | None) -> Extensions:
    if given is not None:
        return given
    return NONE if preset == "paper" else STRONGEST


def _attack(
    name: str,
    preset: Preset,
    chosen: Extensions,
    phases: list[Phase],
    restarts: int | None,
    prior: Generator,
) -> Attack:
    return Attack(
        name=name,
        preset=preset,
        reference=REFERENCE,
        phases=tuple(phases),
        restarts=4 if restarts is None else restarts,
        prior=prior,
        extensions=chosen.switched_on(),
    )
