"""Labels from an update: exact for one image under cross-entropy, estimated for more."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, InputError, ModelError
from gifd.leakage.counts import ClassMeans, DummyMean
from gifd.leakage.one_label import read_label
from gifd.leakage.one_label.numbers import read_numbers


def label_hypotheses(
    observation: Observation, most: int = 1
) -> tuple[Shaped[Tensor, "M B *T"], str]:
    """The labels for an attack, the likeliest first, and their source.

    - 'granted': from the ledger
    - 'inferred': exact, from the update of one image
    - 'estimated': of several images (`DummyMean`); of one image if the update agrees with the
      label but cannot confirm it; of one image behind a defence; or from the rest of the update if
      the head shows nothing or is not linear (`ClassMeans`)

    Labels that are numbers are read of one image (`read_numbers`). Only the counts of several
    images can be uncertain. Then there are up to `most` hypotheses,
    otherwise one.

    Raises:
        InputError: granted labels that do not fit the loss, an update that neither one image nor
            a defence explains, or labels that cannot be read because they are numbers of several
            images or maps.
        ModelError: the update does not depend on the labels.
    """
    granted, task = (
        observation.ledger.labels,
        observation.model.task(observation.ledger.image_shape),
    )
    if granted is not None:
        task.check(granted, "granted labels")
        return granted[None], "granted"
    if task.numbers:
        return read_numbers(observation)[None], "inferred"
    if task.targets:
        raise InputError(
            "expected granted labels, as those of a map of classes cannot be read, got none: "
            f"{GRANT_LABELS}, or use an attack that searches them (dlg)"
        )
    try:
        found, source = _shown_by_head(observation, most)
    except ModelError:  # no linear head, or one that shows nothing
        found, source = ClassMeans()(observation).hypotheses(most), "estimated"
    return found.to(observation.model.device), source


def _shown_by_head(observation: Observation, most: int) -> tuple[Int[Tensor, "M B"], str]:
    if observation.ledger.batch_size > 1:
        found = DummyMean()(observation)
        if len(found.counts) < observation.model.classes(observation.ledger.image_shape):
            raise ModelError("expected an output for each class, got one for two")
        return found.hypotheses(most), "estimated"
    reading = read_label(observation)
    refused = reading.doubt is not None and not _defended(observation)
    if refused and observation.protocol.sized:
        raise InputError(reading.refusal())
    return torch.tensor([[reading.label]]), "inferred" if reading.checked else "estimated"


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
