"""Learning To Invert (LTI): a network from updates to images."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given, is_ours, learnt_from
from gifd.priors.generator import Generator
from gifd.search import Learned, Phase, Pixels, Source

REFERENCE = "Wu et al., Learning To Invert, UAI 2023, arXiv:2210.10880"


def lti(
    prior: Generator | None = None,
    *,
    public: Source | None = None,
    preset: Preset = "strongest",
    restarts: int | None = None,
    hidden: int | None = None,
    epochs: int | None = None,
) -> Attack:
    """A perceptron, trained on own images, that maps the update to the private images.

    `paper`: two hidden layers of 3,000 units, 200 epochs of Adam at learning rate 1e-4, divided by
    ten after half of them, in steps of 256 batches, as in the published code. The number of images
    is ours (3,000; the paper trains on 50,000).

    Args:
        prior: its samples are the images, unless public ones are given. Without either, they are
            random shapes (`gifd.leaves`).
        public: images of the private ones' kind.
        preset: 'paper', or 'strongest': a smaller network, which little data trains better.
        restarts: networks; 1 by default.
        hidden: units of a hidden layer; 1,000 in 'strongest'.
        epochs: 60 in 'strongest', at learning rate 1e-3.

    Source: Wu et al., Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in
    Federated Learning, UAI 2023, arXiv:2210.10880. See `gifd.search.Learned` for what differs.
    """
    ours = is_ours(preset)
    begin = Learned(
        source=learnt_from(public, prior),
        hidden=given(hidden, 1000 if ours else 3000),
        epochs=given(epochs, 60 if ours else 200),
        lr=1e-3 if ours else 1e-4,
    )
    return Attack(
        name="lti",
        preset=preset,
        reference=REFERENCE,
        phases=(Phase(name="learned", space=Pixels(), steps=1, begin=begin),),
        restarts=given(restarts, 1),
        prior=prior,
    )
