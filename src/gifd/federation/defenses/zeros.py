"""Zeros of an update: those that a defence made, told from those that every update has."""

from __future__ import annotations

import torch
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.updates import Update


def share(update: Update) -> float:
    """Of zeros among all numbers."""
    return sum(int((tensor == 0).sum()) for tensor in update.tensors) / update.numel


def scattered(observation: Observation) -> float:
    """The share of zeros where their row and their column hold something, beyond what is natural.

    A dead unit makes whole rows of its weight's gradient zero, a feature that is 0 whole columns,
    and so does a kernel's tap that only ever sees padding. What drops single numbers scatters
    zeros. A batch scatters a few by itself: as many as random images do, twice, are expected.
    The head's weight is left out, of which Soteria hides columns.
    """
    head = observation.model.head(observation.ledger.image_shape).weight
    natural = _scattered(_of_random_images(observation), head)
    return max(0.0, _scattered(observation.update, head) - 2 * natural)


def hidden_columns(observation: Observation) -> float:
    """The share of columns of the head's weight that hold nothing; 0 where random images leave
    half as many empty: what enters the head may be 0.
    """
    head = observation.model.head(observation.ledger.image_shape).weight
    hidden = _empty(observation.update[head])
    return hidden if hidden > 2 * _empty(_of_random_images(observation)[head]) else 0.0


def _of_random_images(observation: Observation) -> Update:
    ledger, model = observation.ledger, observation.model
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(ledger.batch_size, *ledger.image_shape, generator=rng).to(model.device)
    labels = torch.arange(ledger.batch_size, device=model.device) % model.classes(
        ledger.image_shape
    )
    return observation.replay(images, labels).detach()


def _scattered(update: Update, head: str) -> float:
    zeros = total = 0
    for name, tensor in update.items():
        if tensor.ndim < 2 or name == head:
            continue
        filled = tensor.flatten(1) != 0
        inside = filled.any(1, keepdim=True) & filled.any(0, keepdim=True)
        zeros += int((inside & ~filled).sum())
        total += int(inside.sum())
    return zeros / total if total else 0.0


def _empty(weight: Tensor) -> float:
    return float((weight == 0).all(0).double().mean())
