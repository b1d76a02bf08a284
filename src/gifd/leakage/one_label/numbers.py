"""Numbers: the targets of one image, where they are numbers, solved from the head's gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, InputError, ModelError
from gifd.leakage.one_label.evidence import gathered

_REMEDY = f"{GRANT_LABELS}, or use an attack that searches them (dlg)"
_STEPS, _CLOSE = 20, 1e-3


def read_numbers(observation: Observation) -> Float[Tensor, "1 *T"]:
    """The targets of one image, as of several labels (binary cross-entropy) or of a regression.

    The gradients of the head's bias, d, and weight, `d a^T`, give its input a and so its outputs z.
    The targets solve `d loss(z, y) / d z = d`. Under squared error and binary cross-entropy this is
    affine in y, and Newton's method needs one step.

    Source: ours, after Zhao et al., iDLG, 2020, whose label is the case of cross-entropy.

    Raises:
        InputError: several images or local steps, a defence, a head without a bias, or an update
            that no targets of one image explain.
    """
    ledger, model = observation.ledger, observation.model
    if ledger.batch_size > 1:
        raise InputError(
            f"expected one image to read its labels, which are numbers, got {ledger.batch_size}: "
            f"{_REMEDY}"
        )
    try:
        seen = gathered(observation)
    except ModelError:
        raise InputError(
            "expected a linear head whose gradient shows the labels, which are numbers here, got a "
            f"head of another kind or a hidden one: {_REMEDY}"
        ) from None
    if seen.steps > 1 or seen.hidden or seen.bias is None:
        raise InputError(
            "expected the gradient of one step at the head's weight and bias to read labels that "
            f"are numbers, got less: {_REMEDY}"
        )
    d, a = seen.rank_one()
    like = next(iter(model.parameters.values()))
    task = model.task(ledger.image_shape)
    z = (seen.head_weight @ a + seen.head_bias).view(1, *task.outputs)

    def slope(y: Tensor) -> Tensor:
        row = z.to(like.device) if like.dtype == torch.float64 else z.float().to(like)
        found: Tensor = grad(model.loss)(row, y.to(row).view(1, *task.targets))
        return found.flatten()

    found = _solved(slope, d, like)
    left = (slope(found).double().cpu() - d).norm() / d.norm()
    if seen.beyond(d, a) or not float(left) <= _CLOSE + 100 * seen.rounding:
        raise InputError(
            "expected a gradient that some targets of one image explain, got another (several "
            f"images, a defence, or another loss): {_REMEDY}"
        )
    return found.view(1, *task.targets).to(like)


def _solved(
    slope: Callable[[Tensor], Tensor], d: Float[Tensor, "N"], like: Tensor
) -> Float[Tensor, "N"]:
    """The y at which the slope is d, by Newton's method from 0."""
    y = torch.zeros_like(d, dtype=like.dtype, device=like.device)
    for _ in range(_STEPS):
        away = slope(y) - d.to(like)
        if float(away.norm()) <= 1e-9 * float(d.norm()):
            break
        jacobian: Tensor = jacrev(slope)(y)
        step = torch.linalg.pinv(jacobian.double().cpu()) @ away.double().cpu()
        if not bool(step.isfinite().all()):
            break
        y = y - step.to(y)
    return y
