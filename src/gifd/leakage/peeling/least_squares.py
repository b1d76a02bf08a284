"""Least squares with the same answer every time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def least_squares(
    matrix: Float[Tensor, "E Q"], values: Float[Tensor, "E I"]
) -> Float[Tensor, "Q I"]:
    """The solution of `matrix @ x = values` with the least squared error, by QR.

    `torch.linalg.lstsq` rounds differently from call to call on more than one thread, and a tiny
    value's sign may depend on it.

    Args:
        matrix: of full column rank; otherwise the solution is not finite, or large.
        values: right-hand sides.
    """
    left, right = torch.linalg.qr(matrix)
    found: Tensor = torch.linalg.solve_triangular(right, left.mT @ values, upper=True)
    return found
