"""Ensemble: learn the way from updates to images, again and again around the guess."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given, learnt_from
from gifd.errors import InputError
from gifd.priors.generator import Generator
from gifd.search import Ensemble, Feature, Latent, Phase, Pixels, Source, Space

REFERENCE = "gifd's own; after Iglesias et al., Ensemble Kalman Methods, Inverse Problems 2013"


def ensemble(
    prior: Generator | None = None,
    *,
    public: Source | None = None,
    preset: Preset = "strongest",
    restarts: int | None = None,
    rounds: int = 3,
    features: int | None = None,
) -> Attack:
    """Learns the way from updates to images on an ensemble, in rounds around the guess.

    No second derivative is used. The first round learns from samples of the prior, or from public
    images, what an update says of its image (`gifd.search.Ensemble`). Each further round learns it
    anew around the last guess. Between the rounds the prior's image nearest to the guess takes
    its place. By default 1,000 images a round.

    It is for updates that hide what `peel` needs: noisy or compressed ones, several local steps.
    All presets are the same.

    Args:
        prior: the generator; without one the guesses are not projected.
        public: images of the private ones' kind to learn from, in place of the prior's. Without
            either, it learns from random shapes (`gifd.leaves`).
        preset: as of the other attacks.
        restarts: independent ensembles; 1 by default.
        rounds: after the first one.
        features: stages of the generator before the features that are searched after the first
            round, 1 by default; 0 for none: the guesses are not projected.

    Source: see `gifd.search.Ensemble`.
    """
    source = learnt_from(public, prior)
    features = given(features, 0 if prior is None else 1)
    if rounds < 0 or (features and prior is None):
        raise InputError(
            f"expected rounds >= 0, and features of a prior only, got rounds={rounds}, "
            f"features={features} and {prior}"
        )
    depth = 0 if prior is None else min(features, len(prior) - 1)
    learn: Space = Latent() if features else Pixels()
    later: Space = Feature(depth) if depth else learn
    phases = [Phase(name="first round", space=learn, steps=1, begin=Ensemble(source=source))]
    for number in range(rounds):
        begin = Ensemble(around=True)
        phases.append(Phase(name=f"round {number + 2}", space=later, steps=1, begin=begin))
    return Attack(
        name="ensemble",
        preset=preset,
        reference=REFERENCE,
        phases=tuple(phases),
        restarts=given(restarts, 1),
        prior=prior,
        answer="last",
    )
