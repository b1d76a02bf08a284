"""Deep Leakage from Gradients (DLG), and iDLG, which infers the label first."""

from __future__ import annotations

from dataclasses import replace

from gifd.attacks.attack import Attack
from gifd.attacks.presets import Preset, given, is_ours, kept, switched_on
from gifd.search import LBFGS, Measure, Phase, Pixels, Squared

REFERENCE = "Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, arXiv:1906.08935"
IDLG_REFERENCE = "Zhao et al., iDLG: Improved Deep Leakage from Gradients, arXiv:2001.02610"


def dlg(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    best: bool | None = None,
) -> Attack:
    """Deep Leakage from Gradients: pixels and soft labels, squared distance, L-BFGS.

    `paper`: 300 calls of L-BFGS with 20 evaluations each, learning rate 1, images and labels from
    standard normal noise, no clipping. `gifd-paper` is the same: GIFD's paper does not compare it.

    Args:
        preset: see above; 'strongest' is the paper plus the extension below. Smoothed curvature
            made it worse (docs/results.md).
        restarts: 1 by default.
        best: ours: keep each restart's best iterate, not its last. In 'strongest'.

    Source: Zhu et al., Deep Leakage from Gradients, NeurIPS 2019, arXiv:1906.08935.

    Differs from the official code: the noise is standard normal in the model's normalised units;
    the paper's LeNet has no normalisation.
    """
    best = given(best, is_ours(preset))
    pixels = Phase(
        name="pixels",
        space=Pixels(bounded=False, soft_labels=True),
        steps=300 * 20,
        optimizer=LBFGS(),
        distance=Squared(),
        keeps=kept(best),
    )
    return Attack(
        name="dlg",
        preset=preset,
        reference=REFERENCE,
        phases=(pixels,),
        restarts=given(restarts, 1),
        selection=Measure(distance=Squared()),
        extensions=switched_on(best=best),
    )


def idlg(
    *,
    preset: Preset = "strongest",
    restarts: int | None = None,
    best: bool | None = None,
) -> Attack:
    """DLG with the label inferred from the update first, so only pixels are searched.

    Its arguments are those of `gifd.attacks.dlg`.

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020, arXiv:2001.02610.
    """
    full = dlg(preset=preset, restarts=restarts, best=best)
    phases = tuple(replace(phase, space=Pixels(bounded=False)) for phase in full.phases)
    return replace(full, name="idlg", reference=IDLG_REFERENCE, phases=phases)
