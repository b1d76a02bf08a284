"""Ensemble: learn the way from updates to images, again and again around the guess."""

from __future__ import annotations

from gifd.attacks.attack import Attack, expect_prior
from gifd.attacks.presets import Preset, given, learnt_from
from gifd.errors import InputError
from gifd.priors.generator import Generator
from gifd.search import Ensemble, Feature, Latent, Phase, Pixels, Source, Space

REFERENCE = "gifd's own; after Iglesias et al., Ensemble Kalman Methods, Inverse Problems 2013"


def ensemble(
    prior: Generator,
    *,
    public: Source | None = None,
    preset: Preset = "strongest",
    restarts: int | None = None,
    rounds: int = 3,
    features: int = 1,
) -> Attack:
    """Learns the way from updates to images on an ensemble, in rounds around the guess.

    No second derivative is used. The first round learns from samples of the prior, or from public
    images, what an update says of its image (`gifd.search.Ensemble`). Each further round learns it
    anew around the last guess. Between the rounds the prior's image nearest to the guess takes
    its place. By default 1,000 images a round.

    It is for updates that hide what `peel` needs: noisy or compressed ones, several local steps.
    All presets are the same.

    Args:
        prior: the generator.
        public: images of the private ones' kind to learn from, in place of the prior's.
        preset: as of the other attacks.
        restarts: independent ensembles; 1 by default.
        rounds: after the first one.
        features: stages of the generator before the features that are searched after the first
            round; 0 for none: the guesses are not projected, and no prior is searched.

    Source: see `gifd.search.Ensemble`.
    """
    expect_prior(prior)
    if rounds < 0 or features < 0:
        raise InputError(f"expected rounds and features >= 0, got {rounds} and {features}")
    depth = min(features, len(prior) - 1)
    learn: Space = Latent() if features else Pixels()
    later: Space = Feature(depth) if depth else learn
    phases = [
        Phase(name="first round", space=learn, steps=1, begin=Ensemble(source=learnt_from(public)))
    ]
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
