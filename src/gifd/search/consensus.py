"""Consensus: the mean state of several restarts, from which a phase begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gifd.priors.generator import State
from gifd.task import differ


def consensus(
    states: Sequence[State],
    images: Float[Tensor, "R B C H W"],
    labels: Shaped[Tensor, "R B *T"],
) -> State:
    """The mean of the restarts' states, which averages out the errors of single restarts.

    An update does not fix the order of images with the same label. So the images of each restart
    are first put into the order of the best restart's, by the assignment of least squared
    distance within each label. Restarts replayed with other labels than the best one are left
    out. Tensors that are not floating point, such as classes, are the best restart's.

    Args:
        states: one per restart, the best first; their tensors are (B, ...).
        images: the images of each restart.
        labels: the labels that each restart was replayed with.

    Source: ours; after the observation of Yin et al., See through Gradients, CVPR 2021, that
    restarts differ in their errors and agree on the content.
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
    images: Float[Tensor, "B C H W"], reference: Float[Tensor, "B C H W"], labels: Tensor
) -> Int[Tensor, "B"]:
    """For each image of the reference the index of the image assigned to it, within its label."""
    away = torch.cdist(reference.double().flatten(1), images.double().flatten(1)).square()
    apart = away.masked_fill(
        differ(labels), float(away.sum()) + 1
    )  # dearer than any order within labels
    return torch.as_tensor(linear_sum_assignment(apart.cpu().numpy())[1])
