"""Labels read off an update: exact for one image under cross-entropy, estimated for more."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.errors import InputError, ModelError
from gifd.label_counts import DummyMean
from gifd.observation import Observation


def label_hypotheses(observation: Observation, most: int = 1) -> tuple[Int[Tensor, "M B"], str]:
    """The labels an attack works with, the likeliest first, and where they come from.

    They are 'granted' by the ledger, or 'inferred' exactly from the update of one image, or
    'estimated' from that of more (`DummyMean`). Only the last can be uncertain: then there are
    up to `most` hypotheses, otherwise one.
    """
    granted = observation.ledger.labels
    if granted is not None:
        classes = observation.model.classes(observation.ledger.image_shape)
        if granted.min() < 0 or granted.max() >= classes:
            raise InputError(
                f"expected granted labels from 0 to {classes - 1} (the model has {classes} "
                f"classes), got {granted.tolist()}"
            )
        return granted[None], "granted"
    if observation.ledger.batch_size > 1:
        found = DummyMean()(observation).hypotheses(most)
        return found.to(observation.model.device), "estimated"
    return infer_label(observation)[None], "inferred"


def infer_label(observation: Observation) -> Int[Tensor, "B"]:
    """The label of a single image, from the gradient of the linear head alone.

    Under cross-entropy the gradient of the logits is `p - onehot(y)`: negative for the true
    class only. The head's bias shows it directly. Without a bias the weight's gradient is
    `(p - onehot(y)) a^T`, whose row y is the longest, as it is against all the others together.
    Where another is as long (two classes, or a model that is sure of a wrong one) the rows'
    sums decide, as `a` is non-negative behind a ReLU.

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020.

    Returns:
        labels of shape (1,).

    Raises:
        InputError: more than one image is in the batch.
        ModelError: the model has no linear head, or its gradient vanishes.
    """
    size = observation.ledger.batch_size
    if size != 1:
        raise InputError(
            f"expected a batch of one image to read its label, got {size}: estimate the counts "
            "(gifd.label_counts) or grant the labels"
        )
    head = observation.model.head(observation.ledger.image_shape)
    gradient = observation.protocol.as_gradient(observation.update)
    if head.bias is not None:
        evidence = gradient[head.bias]
    else:
        rows = gradient[head.weight]
        length = rows.square().sum(1)
        longest = length >= 0.99 * length.max()
        evidence = torch.where(longest, rows.sum(1) if int(longest.sum()) > 1 else -length, 0)
    if not bool((evidence != 0).any()):
        raise ModelError(
            "expected a head whose gradient shows the label, got zeros only: grant the labels"
        )
    return torch.argmin(evidence).reshape(1)
