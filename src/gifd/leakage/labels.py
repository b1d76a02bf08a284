"""Labels from an update: exact for one image under cross-entropy, estimated for more."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, InputError
from gifd.leakage.counts import DummyMean
from gifd.leakage.one_label import read_label


def label_hypotheses(observation: Observation, most: int = 1) -> tuple[Int[Tensor, "M B"], str]:
    """The labels for an attack, the likeliest first, and their source.

    - 'granted': from the ledger
    - 'inferred': exact, from the update of one image
    - 'estimated': of several images (`DummyMean`); of one image if the update agrees with the
      label but cannot confirm it; or of one image behind a defence

    Only the counts of several images can be uncertain. Then there are up to `most` hypotheses,
    otherwise one.

    Raises:
        InputError: a granted label outside the model's classes, or an update that neither one
            image nor a defence explains.
        ModelError: the model has no linear head, or its gradient vanishes.
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
    reading = read_label(observation)
    if reading.doubt is not None and not _defended(observation):
        raise InputError(reading.refusal())
    label = torch.tensor([[reading.label]], device=observation.model.device)
    return label, "inferred" if reading.checked else "estimated"


def _defended(observation: Observation) -> bool:
    """Whether the attacker knows of a possible defence."""
    return observation.ledger.attacker is not None or bool(observation.ledger.believed)


def infer_label(observation: Observation) -> Int[Tensor, "B"]:
    """The label of a single image, from the gradient of the linear head alone.

    Under cross-entropy the gradient of the logits is `p - onehot(y)`, negative only for the true
    class. It is the gradient of the head's bias; without a bias, the weight reveals it
    (`read_label`).

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020.

    Returns:
        labels of shape (1,).

    Raises:
        InputError: the batch has several images, or one image cannot have left the update.
        ModelError: the model has no linear head, or its gradient vanishes.
    """
    size = observation.ledger.batch_size
    if size != 1:
        raise InputError(
            f"expected a batch of one image to read its label, got {size}: estimate the counts "
            f"(gifd.leakage.counts) or {GRANT_LABELS}"
        )
    reading = read_label(observation)
    if reading.doubt is not None:
        raise InputError(reading.refusal())
    return torch.tensor([reading.label], device=observation.model.device)
