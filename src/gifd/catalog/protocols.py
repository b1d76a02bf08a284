"""Protocols by name: a client's local training from the settings that are usual for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from gifd.errors import InputError
from gifd.federation.between import Between
from gifd.federation.optimizers import SGD, Adam
from gifd.federation.protocols import FedAvg, FedSGD, Protocol


def fedavg(
    lr: float,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd",
    momentum: float | None = None,
    nesterov: bool | None = None,
    dampening: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    shuffle: int | None = None,
    clip: float | None = None,
    proximal: float = 0.0,
    *,
    images: int,
) -> FedAvg:
    """The weight delta of local training with an optimiser of `torch.optim`.

    What is not given is as in `torch.optim`; without steps and epochs it is one epoch.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
    Data, AISTATS 2017.

    Args:
        lr: learning rate of the first step.
        steps: of training; instead of epochs.
        epochs: of training; the last batch of each may be smaller.
        batch_size: images in a local batch; none: all.
        optimizer: the following options are its own; those of another one are refused.
        momentum: of SGD.
        nesterov: of SGD.
        dampening: of SGD.
        beta1: of Adam and AdamW.
        beta2: of Adam and AdamW.
        eps: of Adam and AdamW.
        weight_decay: of all.
        schedule: 'linear' and 'cosine' let the rate fall towards 0 after the last step.
        shuffle: seed of a new order in each epoch.
        clip: norm to which each local gradient is shortened.
        proximal: FedProx' mu.
        images: of the client.

    Raises:
        InputError: an option of another optimiser, steps and epochs, or a number out of range.
    """
    given = {
        name: value
        for name, value in (
            ("momentum", momentum),
            ("nesterov", nesterov),
            ("dampening", dampening),
            ("beta1", beta1),
            ("beta2", beta2),
            ("eps", eps),
            ("weight_decay", weight_decay),
        )
        if value is not None
    }
    kind, own = _OPTIMIZERS[optimizer]
    known = [field.name for field in fields(kind) if field.name != "decoupled"]
    for name in given:
        if name not in known:
            raise InputError(f"expected options of {optimizer} ({', '.join(known)}), got {name}")
    if steps is not None and epochs is not None:
        raise InputError(f"expected steps or epochs, got both, {steps} and {epochs}: give one")
    if epochs is not None and epochs < 1:
        raise InputError(f"expected at least 1 epoch, got {epochs}")
    if steps is None:
        steps = FedAvg.steps_of(1 if epochs is None else epochs, images, batch_size)
    protocol = FedAvg(
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        optimizer=kind(**(own | given)),
        shuffle=shuffle,
        clip=clip,
        proximal=proximal,
    )
    return (
        protocol if schedule == "constant" else replace(protocol, lr=_falling(protocol, schedule))
    )


PROTOCOLS: Mapping[str, Callable[..., Protocol]] = {
    "fedsgd": FedSGD,
    "fedavg": fedavg,
    "between": Between,
}

_OPTIMIZERS: Mapping[str, tuple[type[SGD] | type[Adam], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "adam": (Adam, {}),
    "adamw": (Adam, {"decoupled": True, "weight_decay": 0.01}),
}


def _falling(protocol: FedAvg, schedule: str) -> tuple[float, ...]:
    """A learning rate for each step."""
    assert isinstance(protocol.lr, float)
    done = [step / protocol.steps for step in range(protocol.steps)]
    left = [1 - t if schedule == "linear" else (1 + math.cos(math.pi * t)) / 2 for t in done]
    return tuple(protocol.lr * share for share in left)
