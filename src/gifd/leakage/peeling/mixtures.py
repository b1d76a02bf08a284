"""Mixtures: images separated by the exact zeros of their ReLUs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 20_000
MOST = 10
"""Images at most: one draw in `2^(B-1)` succeeds."""
NEAR = 3e-3
"""Cosine of two directions that counts as 0."""
SHARE = 0.05
"""Least share of zeros in an image's activations."""


def separation(mixed: Float[Tensor, "B N"], rng: torch.Generator) -> Float[Tensor, "B B"] | None:
    """The matrix G for which every row of `G @ mixed` is non-negative with many zeros.

    A row of G that makes B - 1 numbers of one image zero is determined by them. So B - 1 columns
    are drawn, and the row that makes them zero is kept if it makes many others zero as well: with
    half of the numbers zero, one draw in `2^(B-1)` succeeds for each image.

    Args:
        mixed: the images' activations, mixed; N numbers each.
        rng: draws the columns.

    Returns:
        None if fewer than B such rows are found.

    Source: ours; the idea is that of Dimitrov et al., SPEAR: Exact Gradient Inversion of Batches
    in Federated Learning, NeurIPS 2024, for fully connected layers.
    """
    batch = len(mixed)
    if batch > MOST:
        return None
    if batch == 1:
        return mixed.new_tensor([[-1.0 if float(mixed.sum()) < 0 else 1.0]])
    left, sizes, _ = torch.linalg.svd(mixed, full_matrices=False)
    white = (left / sizes).T @ mixed  # rows are orthonormal
    lengths = white.norm(dim=0)
    white = (white / lengths)[:, lengths > 0.1 * lengths.mean()]
    if not white.shape[1]:
        return None
    order = torch.randint(white.shape[1], (DRAWS, batch - 1), generator=rng).to(mixed.device)
    _, spread, rows = torch.linalg.svd(white[:, order].permute(1, 2, 0), full_matrices=True)
    rows = rows[spread[:, -1] > 0.02 * spread[:, 0]][:, -1]  # (draws, B)
    if not len(rows):
        return None
    zeros = torch.cat([_zeros(part, white).sum(1) for part in rows.split(64)])
    found: list[Tensor] = []
    while len(found) < batch:
        best = int(zeros.argmax())
        if int(zeros[best]) < SHARE * white.shape[1]:
            return None
        row = rows[best]
        within = NEAR
        for _ in range(6):
            values = (row @ white).abs()
            row = torch.linalg.svd(white[:, values < within], full_matrices=False)[0][:, -1]
            values = (row @ white).abs()
            within = min(within, 1e-12 + 8 * float(values[values < within].median()))
        zeros[(rows @ row).abs() > 0.999] = 0
        zeros[best] = 0
        if all(float((row @ other).abs()) < 0.999 for other in found):
            found.append(row)
    unmixing = torch.stack(found) @ (left / sizes).T
    signed: Tensor = unmixing * torch.sign((unmixing @ mixed).sum(1, keepdim=True))
    return signed


def _zeros(row: Tensor, columns: Tensor) -> Tensor:
    return (row @ columns).abs() < NEAR
