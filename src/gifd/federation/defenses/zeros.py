"""Zeros of an update: those of a defence, separated from natural ones."""

from __future__ import annotations

import torch
from torch import Tensor

from gifd.errors import ModelError
from gifd.federation.upload import Upload
from gifd.updates import Update


def share(update: Update) -> float:
    """The share of zeros among all numbers."""
    return sum(int((tensor == 0).sum()) for tensor in update.tensors) / update.numel


def scattered(upload: Upload) -> float:
    """The share of zeros in rows and columns that are not empty, beyond the natural share.

    A dead unit makes a whole row of the weight's gradient zero. A feature that is 0, or a tap of a
    kernel that sees only padding, makes a whole column zero. A defence that drops single numbers
    scatters zeros. A batch scatters a few by itself; up to twice the share of random images counts
    as natural. The head's weight is left out, as Soteria hides its columns.
    """
    head = head_weight(upload)
    natural = _scattered(of_random_images(upload), head)
    return max(0.0, _scattered(upload.update, head) - 2 * natural)


def hidden_columns(upload: Upload) -> float:
    """The share of zero columns of the head's weight.

    0 if random images leave more than half as many: the input of the head may be 0 by itself.
    """
    head = head_weight(upload)
    if head is None:
        return 0.0
    hidden = _empty(upload.update[head])
    return hidden if hidden > 2 * _empty(of_random_images(upload)[head]) else 0.0


def head_weight(upload: Upload) -> str | None:
    """The name of the head's weight; None if the model has no linear head."""
    try:
        return upload.model.head(upload.image_shape).weight
    except ModelError:
        return None


def of_random_images(upload: Upload) -> Update:
    """The update of a batch of uniform noise."""
    model, shape = upload.model, upload.image_shape
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(upload.batch_size, *shape, generator=rng).to(model.device)
    labels = model.task(shape).drawn(upload.batch_size, rng, images)
    return upload.replay(images, labels).detach()


def _scattered(update: Update, head: str | None) -> float:
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
