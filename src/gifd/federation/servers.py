"""Server: what becomes of the clients' updates at the end of a round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import final

import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Wrapped
from gifd.federation.protocols import FedSGD, Protocol
from gifd.model import Model
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """What a client sends at the end of a round.

    Args:
        update: by its protocol.
        buffers: of its module after the training, those that the training changed.
        images: the number of its images, the weight of its reply.
        protocol: what it computed.
    """

    update: Update
    buffers: Mapping[str, Tensor]
    images: int
    protocol: Protocol


class Server(ABC):
    """Makes the next weights of what the clients replied."""

    @abstractmethod
    def __call__(self, model: Model, replies: Sequence[Reply]) -> Mapping[str, Tensor]:
        """The weights after a round.

        Args:
            model: at the weights that the clients received.
            replies: at least one.
        """

    def returned(self, model: Model, reply: Reply) -> Mapping[str, Tensor]:
        """What a client sends to this server, by name: its update, or its whole state."""
        return reply.update


@final
@dataclass(frozen=True)
class Averaging(Server):
    """The mean of the clients' weights, each weighted by its number of images.

    Updates are weight deltas, so the mean delta is added to the weights.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
    Data, AISTATS 2017 (FederatedAveraging).
    """

    def __call__(self, model: Model, replies: Sequence[Reply]) -> Mapping[str, Tensor]:
        """The weights, moved by the mean delta.

        Raises:
            InputError: clients that send gradients.
        """
        if any(_sends_a_gradient(reply.protocol) for reply in replies):
            raise InputError(
                "expected clients that send weight deltas to a server that averages them, got "
                "gradients: use FedAvg, or a server that descends"
            )
        delta = mean([reply.update for reply in replies], [reply.images for reply in replies])
        return Update(dict(model.parameters)) + delta

    def returned(self, model: Model, reply: Reply) -> Mapping[str, Tensor]:
        """All of the client's state: weights and buffers after its training."""
        weights = Update(dict(model.parameters)) + reply.update
        return model.at(weights, {**model.buffers, **reply.buffers}).state()


@final
@dataclass(frozen=True)
class Descent(Server):
    """A step of gradient descent along the clients' mean gradient, weighted likewise.

    Args:
        lr: the server's learning rate, above 0 and finite.

    Source: McMahan et al., AISTATS 2017 (FederatedSGD).
    """

    lr: float

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"expected a server's learning rate above 0, got {self.lr}")

    def __call__(self, model: Model, replies: Sequence[Reply]) -> Mapping[str, Tensor]:
        """The weights after the step."""
        return Update(dict(model.parameters)).add_scaled(mean_gradient(model, replies), -self.lr)


def mean_gradient(model: Model, replies: Sequence[Reply]) -> Update:
    """The weighted mean of the updates, each with the sign and scale of a gradient."""
    gradients = [reply.protocol.as_gradient(reply.update, model.parameters) for reply in replies]
    return mean(gradients, [reply.images for reply in replies])


def mean(updates: Sequence[Update], images: Sequence[int]) -> Update:
    """The mean, weighted by the numbers of images; equal ones give the plain mean, exactly."""
    shares = [count * len(images) / sum(images) for count in images]
    weighted = [
        update if share == 1 else update * share
        for update, share in zip(updates, shares, strict=True)
    ]
    return reduce(add, weighted) / len(images)


def mean_buffers(model: Model, replies: Sequence[Reply]) -> dict[str, Tensor]:
    """The buffers after a round: the weighted mean of those that a client changed.

    So batch norm's running statistics, in training mode. Whole numbers, such as its counter of
    batches, are rounded.
    """
    total = sum(reply.images for reply in replies)
    found = dict(model.buffers)
    for name in {name: None for reply in replies for name in reply.buffers}:
        own = model.buffers[name]
        each = [reply.buffers.get(name, own).double() * reply.images for reply in replies]
        whole = torch.stack(each).sum(0) / total
        found[name] = (whole if own.is_floating_point() else whole.round()).to(own.dtype)
    return found


def _sends_a_gradient(protocol: Protocol) -> bool:
    while isinstance(protocol, Wrapped):
        protocol = protocol.inner
    return isinstance(protocol, FedSGD)
