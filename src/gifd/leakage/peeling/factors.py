"""Factors: the slopes and the input of one convolution from the gradient of its weight alone.

The gradient `D_u = s S_u a^T` of a convolution that keeps the size is a product of the slopes s
(O, Q), the known shifts S_u (Q, Q), which drop what falls beyond the border, and the input a
(I, Q). Q positions have fewer unknowns than D has numbers. With the left singular vectors U of D,
`s = U T`, and a row w of `T^-1` at position p makes `w U^T D_u` the input at `p + u`. So

- where `p + u` lies beyond the border, `w U^T D_u = 0`: this alone determines w at a corner;
- what two positions both see is equal: this determines each w by those of its neighbours.

Both are linear. The product is determined up to one factor per image and, for several images, up
to a mixture of them, which the zeros of a ReLU resolve.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.leakage.peeling.layers import Convolution
from gifd.leakage.peeling.least_squares import least_squares

GAP = 30
"""Least ratio of the smallest singular value of the images' to the largest of the rounding's."""
AWAY = 1e-3
"""Largest relative residual of the product."""


def factors(
    gradient: Float[Tensor, "O I kh kw"],
    layer: Convolution,
    side: tuple[int, int],
    batch: int,
) -> tuple[Tensor, Tensor] | None:
    """Slopes (O, B, H, W) and inputs (B, I, H, W) whose product is the gradient.

    Args:
        gradient: of the layer's weight.
        layer: keeps the size of its input.
        side: (H, W) of the input.
        batch: B; the results are mixtures of the images.

    Returns:
        None if the gradient does not show that many positions: it needs more channels.
    """
    height, width = side
    rank = batch * height * width
    outs, ins = gradient.shape[:2]
    if rank >= min(outs, ins):
        return None
    left, sizes, _ = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    if float(sizes[rank - 1]) < GAP * float(sizes[rank]):
        return None
    right = torch.linalg.svd(gradient.transpose(0, 1).flatten(1), full_matrices=False)[0]
    left, right = left[:, :rank], right[:, :rank]
    seen = torch.einsum("or,oiuv,is->uvrs", left, gradient, right)  # (kh, kw, Q, Q)
    squares = seen @ seen.mT
    down, across = layer.padding
    known: dict[tuple[int, int], tuple[Tensor, int]] = {}  # input position -> its sum, and count
    for y in range(height):
        for x in range(width):
            matrix, wanted = torch.zeros_like(squares[0, 0]), None
            for u, v in _places(layer):
                place = (y + u - down, x + v - across)
                outside = not (0 <= place[0] < height and 0 <= place[1] < width)
                if outside or place in known:
                    matrix = matrix + squares[u, v]
                if not outside and place in known:
                    total, count = known[place]
                    part = (total / count) @ seen[u, v].mT
                    wanted = part if wanted is None else wanted + part
            if wanted is None:
                row = torch.linalg.eigh(matrix)[1][:, :batch].T  # (B, Q)
            else:
                row = least_squares(matrix, wanted.mT).mT
            for u, v in _places(layer):
                place = (y + u - down, x + v - across)
                if 0 <= place[0] < height and 0 <= place[1] < width:
                    total, count = known.get(place, (torch.zeros_like(row), 0))
                    known[place] = (total + row @ seen[u, v], count + 1)
    inputs = torch.stack(
        [known[y, x][0] / known[y, x][1] for y in range(height) for x in range(width)], 1
    )  # (B, P, Q)
    fed = (inputs @ right.T).transpose(1, 2).reshape(batch, ins, height, width)
    slopes, fed = refined(gradient, layer, fed)
    away = layer.gradient(fed, slopes) - gradient
    return (slopes, fed) if float(away.norm()) < AWAY * float(gradient.norm()) else None


def refined(
    gradient: Tensor, layer: Convolution, fed: Tensor, rounds: int = 3
) -> tuple[Tensor, Tensor]:
    """Slopes and inputs by alternating least squares, from this input."""
    batch, _, height, width = fed.shape
    for _ in range(rounds):
        slopes = least_squares(layer.patches(fed).T, gradient.flatten(1).T)  # (Q, O)
        slopes = slopes.view(batch, height, width, -1).permute(0, 3, 1, 2)
        matrix, values = layer.equations(slopes, gradient, fed)
        fed = layer.from_rows(least_squares(matrix, values), fed)
    return slopes, fed


def _places(layer: Convolution) -> list[tuple[int, int]]:
    return [(u, v) for u in range(layer.kernel[0]) for v in range(layer.kernel[1])]
