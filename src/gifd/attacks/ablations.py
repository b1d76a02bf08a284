"""The ablations of GIFD: the latent alone, features without balls, the last phase's answer."""

from __future__ import annotations

from dataclasses import replace

from gifd.attacks.attack import Attack
from gifd.attacks.gifd import gifd
from gifd.attacks.presets import Preset, agreed_last, given, is_ours, switched_on
from gifd.priors.generator import Generator
from gifd.search import Feature, Latent


def gifd_latent(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    consensus: float | None = None,
    best: bool | None = None,
) -> Attack:
    """Ablation: the latent alone, with the steps of all of GIFD's domains.

    Its arguments are those of `gifd.attacks.gifd`.

    Source: Fang et al., GIFD, ICCV 2023, arXiv:2308.04699.
    """
    full = gifd(prior, preset=preset, restarts=restarts, smoothing=0, consensus=0, best=best)
    latent = next(phase for phase in full.phases if isinstance(phase.space, Latent))
    share = given(consensus, float(is_ours(preset))) if full.restarts > 1 else 0.0
    steps = sum(phase.steps for phase in full.phases)
    on = switched_on(consensus=share, best=latent.keeps == "best")
    phases = agreed_last([replace(latent, steps=steps)], share)
    return replace(full, name="gifd-latent", phases=phases, extensions=on)


def gifd_noball(
    prior: Generator,
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    smoothing: float | None = None,
    variation: float | None = None,
    consensus: float | None = None,
    best: bool | None = None,
) -> Attack:
    """Ablation: features without L1 balls, as in ILO.

    Its arguments are those of `gifd.attacks.gifd`.

    Source: Daras et al., Intermediate Layer Optimization for Inverse Problems, ICML 2021.
    """
    full = gifd(
        prior,
        preset=preset,
        restarts=restarts,
        smoothing=smoothing,
        variation=variation,
        consensus=consensus,
        best=best,
    )
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
    smoothing: float | None = None,
    variation: float | None = None,
    consensus: float | None = None,
    best: bool | None = None,
) -> Attack:
    """Ablation: the answer is the last feature domain's, whatever its distance.

    Its arguments are those of `gifd.attacks.gifd`.

    Source: Fang et al., GIFD, ICCV 2023, arXiv:2308.04699.
    """
    full = gifd(
        prior,
        preset=preset,
        restarts=restarts,
        smoothing=smoothing,
        variation=variation,
        consensus=consensus,
        best=best,
    )
    return replace(full, name="gifd-last", answer="last")
