"""Deep Leakage from Gradients (DLG) and its improvement by a label that is read off (iDLG)."""

from __future__ import annotations

from dataclasses import replace

from gifd.attacks.attack import Attack
from gifd.attacks.extensions import Extensions, Preset, choose
from gifd.search import LBFGS, Measure, Phase, Pixels, Squared

REFERENCE = "Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, arXiv:1906.08935"
IDLG_REFERENCE = "Zhao et al., iDLG: Improved Deep Leakage from Gradients, arXiv:2001.02610"
STRONGEST = Extensions(best=1.0)  # smoothed curvature made it worse: docs/results.md


def dlg(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """Search pixels and soft labels together for the least squared distance, by L-BFGS.

    `paper`: 300 calls of L-BFGS with 20 evaluations each, learning rate 1, both from standard
    normal noise, nothing clipped. `gifd-paper` is the same: that paper does not compare it.

    `strongest` keeps the best iterate, not the last: of our extensions none was found to help it.

    Differs from the official code: the noise is standard normal in the model's normalised units;
    the paper's LeNet has no normalisation.
    """
    chosen = choose(preset, STRONGEST, extensions).only("curvature", "best")
    pixels = Phase(
        name="pixels",
        space=Pixels(bounded=False, soft_labels=True),
        steps=300 * 20,
        optimizer=LBFGS(),
        distance=Squared(),
        keeps=chosen.keeps,
        curvature=chosen.curvature,
    )
    return Attack(
        name="dlg",
        preset=preset,
        reference=REFERENCE,
        phases=(pixels,),
        restarts=1 if restarts is None else restarts,
        selection=Measure(distance=Squared()),
        extensions=chosen.switched_on(),
    )


def idlg(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    extensions: Extensions | None = None,
) -> Attack:
    """DLG with the label read off the update first, so that only pixels are searched."""
    full = dlg(preset=preset, restarts=restarts, extensions=extensions)
    phases = tuple(replace(phase, space=Pixels(bounded=False)) for phase in full.phases)
    return replace(full, name="idlg", reference=IDLG_REFERENCE, phases=phases)
