"""Peel: the exact inversion of a gradient, layer by layer."""

from __future__ import annotations

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given
from gifd.search import Inside, Phase, Pixels

REFERENCE = "gifd's own; after Zhu and Blaschko, R-GAP, ICLR 2021, arXiv:2010.07733"


def peel(*, preset: Preset = "strongest", restarts: int | None = None) -> Attack:
    """Solves for the values inside the victim, then for the image. No prior, no search.

    The gradient of a layer is linear in the layer's input once the slopes behind it are known,
    and a convolution with more channels than positions shows both on its own
    (`gifd.leakage.peeling`). So the inputs of the last layers are solved for exactly, and the image
    that has these activations is found by following first derivatives (`gifd.search.Inside`).

    It needs the exact gradient of a few images: FedSGD or one local step, without noise or
    compression. Clipping and Soteria do not stop it. It ends with an `UnexplainedError` if no
    layer shows a first value; otherwise the distance tells how good the answer is.

    Args:
        preset: all are the same.
        restarts: labellings to try, where labels cannot be inferred exactly; 1 by default.

    Source: ours, after Zhu and Blaschko, R-GAP: Recursive Gradient Attack on Privacy, ICLR 2021.
    """
    return Attack(
        name="peel",
        preset=preset,
        reference=REFERENCE,
        phases=(Phase(name="inside", space=Pixels(), steps=1, begin=Inside()),),
        restarts=given(restarts, 1),
    )
