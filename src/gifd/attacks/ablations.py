"""The ablations of GIFD: the latent alone, features without balls, the last phase's answer."""

from __future__ import annotations

from dataclasses import replace

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.attacks.gifd import STRONGEST, gifd
from gifd.priors.generator import Generator
from gifd.search import Feature, Latent

OF_THE_LATENT = ("scouting", "regression", "curvature", "length", "best", "consensus")


def gifd_latent(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """The ablation that searches the latent alone, with the steps that GIFD spends on all."""
    chosen = choose(preset, STRONGEST, extensions).only(*OF_THE_LATENT)
    apart = chosen.without(["consensus"])  # what GIFD spends on its own is not the latent's
    full = gifd(prior, preset=preset, restarts=restarts, extensions=apart)
    chosen = chosen.among(full.restarts)
    *before, latent = (phase for phase in full.phases if isinstance(phase.space, Latent))
    steps = sum(phase.steps for phase in full.phases if phase not in before)
    phases = chosen.closing((*before, replace(latent, steps=steps)))
    return replace(full, name="gifd-latent", phases=phases, extensions=chosen.switched_on())


def gifd_noball(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """The ablation without L1 balls: the features may go anywhere, as in ILO.

    Source: Daras et al., Intermediate Layer Optimization for Inverse Problems, ICML 2021.
    """
    full = gifd(prior, preset=preset, restarts=restarts, extensions=extensions)
    phases = tuple(
        replace(phase, constraints={}) if isinstance(phase.space, Feature) else phase
        for phase in full.phases
    )
    return replace(full, name="gifd-noball", phases=phases)


def gifd_last(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """The ablation in which the last phase answers, whatever its distance."""
    full = gifd(prior, preset=preset, restarts=restarts, extensions=extensions)
    return replace(full, name="gifd-last", answer="last")
