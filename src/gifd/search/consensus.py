"""Consensus: the one state that several restarts agree on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gifd.priors.generator import State


def consensus(
    states: Sequence[State],
    images: Float[Tensor, "R B C H W"],
    labels: Int[Tensor, "R B"],
) -> State:
    """The mean of the restarts' states: what each got wrong by chance is averaged away.

    An update says nothing of the order of the images that share a label, so each restart's
    are first put into the order of the first one's, by the least squared distance between
    images. Restarts that were replayed with other labels than the first are left out, and what
    is no real number, as a class, is the first one's.

    Args:
        states: one a restart, the best first; their tensors are (B, ...).
        images: what each shows.
        labels: what each was replayed with.

    Source: ours; that restarts err by chance and agree on what is there is the observation of
    Yin et al., See through Gradients, CVPR 2021, who draw images to their mean.
    """
    ordered = []
    for state, shown, own in zip(states, images, labels, strict=True):
        if torch.equal(own, labels[0]):
            order = _order(shown, images[0], own).to(shown.device)
            ordered.append({name: tensor[order] for name, tensor in state.items()})
    first = ordered[0]
    return {
        name: torch.stack([state[name] for state in ordered]).mean(0)
        if first[name].is_floating_point()
        else first[name]
        for name in first
    }


def _order(
    images: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"]
) -> Int[Tensor, "B"]:
    """Which of the images belongs to each of the reference, within their labels."""
    away = torch.cdist(reference.double().flatten(1), images.double().flatten(1)).square()
    other = labels[:, None] != labels
    apart = away.masked_fill(other, float(away.sum()) + 1)  # never cheaper than any order within
    return torch.as_tensor(linear_sum_assignment(apart.cpu().numpy())[1])
