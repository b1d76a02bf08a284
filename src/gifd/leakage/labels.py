"""Labels read off an update: exact for one image under cross-entropy, estimated for more."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.leakage.counts import DummyMean
from gifd.leakage.one_label import read_label


def label_hypotheses(observation: Observation, most: int = 1) -> tuple[Int[Tensor, "M B"], str]:
    """The labels an attack works with, the likeliest first, and where they come from.

    They are 'granted' by the ledger, or 'inferred' exactly from the update of one image, or
    'estimated': of more images (`DummyMean`), of one where the update bears no other label out but
    cannot be held against the model, and of one where a defence is at work or is believed in, so
    that the update is not what one image leaves. Only those of several images can be uncertain
    in counts: then there are up to `most` hypotheses, otherwise one.

    Raises:
        InputError: a granted label that the model does not have, or an update that is not what one
            image leaves and no defence to explain it.
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
    """Whether a defence may be at work, as far as the attacker knows."""
    return observation.ledger.attacker is not None or bool(observation.ledger.believed)


def infer_label(observation: Observation) -> Int[Tensor, "B"]:
    """The label of a single image, from the gradient of the linear head alone.

    Under cross-entropy the gradient of the logits is `p - onehot(y)`: negative for the true
    class only. The head's bias shows it directly, its weight without one (`read_label`).

    Source: Zhao et al., iDLG: Improved Deep Leakage from Gradients, 2020.

    Returns:
        labels of shape (1,).

    Raises:
        InputError: more than one image is in the batch, or the update is not what one leaves.
        ModelError: the model has no linear head, or its gradient vanishes.
    """
    size = observation.ledger.batch_size
    if size != 1:
        raise InputError(
            f"expected a batch of one image to read its label, got {size}: estimate the counts "
            "(gifd.leakage.counts) or grant the labels"
        )
    reading = read_label(observation)
    if reading.doubt is not None:
        raise InputError(reading.refusal())
    return torch.tensor([reading.label], device=observation.model.device)
