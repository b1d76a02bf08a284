"""Simulation: the rounds of a federation, one client after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Wrapped
from gifd.federation.protocols import FedAvg, Protocol
from gifd.federation.servers import Averaging, Reply, Server, mean_buffers
from gifd.federation.upload import Upload
from gifd.model import Model


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a client has to do in a round.

    Args:
        pixels: of its images, (B, C, H, W) of bytes.
        labels: (B,).
        protocol: what it computes, with its defences.
    """

    pixels: UInt8[Tensor, "B C H W"]
    labels: Int[Tensor, "B"]
    protocol: Protocol

    def on(self, device: torch.device | str) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, "B"]]:
        """The images in [0, 1] and their labels on a device."""
        return self.pixels.float().to(device) / 255, self.labels.to(device)

    def done(self, model: Model) -> Reply:
        """The client's training, from the weights and buffers of `model`.

        In training mode the module's buffers run on from each local step to the next, as they do
        in PyTorch: batch norm normalises by the local batch and updates its running statistics.
        The update does not depend on them. In evaluation mode buffers stay as they are.
        """
        buffers: dict[str, Tensor] = {}
        update = self.protocol(
            model.running(buffers), model.parameters, model.buffers, *self.on(model.device)
        )
        return Reply(
            update=update.detach(),
            buffers=buffers,
            images=len(self.pixels),
            protocol=self.protocol,
        )


Plan = Callable[[int, int], Work]
"""The work of a round, from 1, and a client, from 0."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """A round that is over.

    Args:
        number: from 1.
        before: the model that the clients received.
        works, replies: of each client.
        after: the model at the end.
    """

    number: int
    before: Model
    works: Sequence[Work]
    replies: Sequence[Reply]
    after: Model

    def upload(self, client: int) -> Upload:
        """What reaches the server from this client, for `observe`.

        Raises:
            InputError: a client with defences, which an upload does not carry.
        """
        work, reply = self.works[client], self.replies[client]
        local = work.protocol.local if isinstance(work.protocol, FedAvg) else work.protocol
        if isinstance(local, Wrapped):
            raise InputError(
                "expected a client without defences, got one that computes "
                f"{work.protocol}: make its Upload with the protocol that is agreed on"
            )
        channels, height, width = work.pixels.shape[1:]
        return Upload(
            update=reply.update,
            model=self.before,
            protocol=work.protocol,
            image_shape=(channels, height, width),
            batch_size=len(work.pixels),
        )


def rounds_of(
    model: Model, plan: Plan, *, clients: int, rounds: int, server: Server
) -> Iterator[Round]:
    """Simulate a federation, round by round.

    In each round every client does its work at the global model, in turn; the server makes the
    next weights of the updates, and averages the buffers that training changed (`mean_buffers`).

    Args:
        model: the first global model.
        plan: asked for each round and client, in this order.
        clients: of every round.
        rounds: how many.
        server: makes the weights.
    """
    for number in range(1, rounds + 1):
        works = [plan(number, client) for client in range(clients)]
        replies = [work.done(model) for work in works]
        after = model.at(server(model, replies), mean_buffers(model, replies))
        yield Round(number=number, before=model, works=works, replies=replies, after=after)
        model = after


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """A federation whose clients keep their images: what each does in each round is decided.

    Every draw depends on the seed, the round and the client alone, so any engine that runs the
    clients in any order gives the same numbers to rounding.

    Args:
        model: the first global model.
        images: (N, C, S, S) of bytes.
        labels: (N,).
        shares: the numbers of each client's images, as `dealt` makes them.
        protocol: what a client with so many images computes.
        batch: images that a client draws of its own in a round, each at most once; None: all, in
            their order.
        server: makes the weights.
        seed: of the draws.

    Raises:
        InputError: no client, or one with fewer images than a batch, or none.
    """

    model: Model
    images: UInt8[Tensor, "N C S S"]
    labels: Int[Tensor, "N"]
    shares: Sequence[Int[Tensor, "..."]]
    protocol: Callable[[int], Protocol]
    batch: int | None = None
    server: Server = Averaging()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares:
            raise InputError("expected at least one client, got none")
        least = min(range(len(self.shares)), key=lambda client: len(self.shares[client]))
        if len(self.shares[least]) < max(self.batch or 1, 1):
            raise InputError(
                f"expected at least {self.batch or 1} images for each of {len(self.shares)} "
                f"clients, got {len(self.shares[least])} for client {least}: take fewer clients, "
                "smaller batches or less of a class for its owner"
            )

    def held(self, number: int, client: int) -> Int[Tensor, "B"]:
        """The numbers of the images that a client trains on in a round."""
        own = self.shares[client]
        if self.batch is None:
            return own
        drawn = np.random.SeedSequence((self.seed, number, client)).generate_state(1)[0]
        rng = torch.Generator().manual_seed(int(drawn))
        return own[torch.randperm(len(own), generator=rng)[: self.batch]]

    def work(self, number: int, client: int) -> Work:
        """What a client does in a round: a `Plan`."""
        held = self.held(number, client)
        return Work(
            pixels=self.images[held],
            labels=self.labels[held],
            protocol=self.protocol(len(held)),
        )

    def rounds(self, count: int) -> Iterator[Round]:
        """The first rounds, in this process; see `rounds_of`."""
        return rounds_of(
            self.model, self.work, clients=len(self.shares), rounds=count, server=self.server
        )


def accuracy(model: Model, images: UInt8[Tensor, "N C S S"], labels: Int[Tensor, "N"]) -> float:
    """The share of images whose class the model finds, in its mode; NaN for none."""
    right = 0
    for first in range(0, len(images), 256):
        part = slice(first, first + 256)
        x = images[part].float().to(model.device) / 255
        with torch.no_grad():
            guess = model.logits(model.parameters, model.buffers, x).argmax(1).cpu()
        right += int((guess == labels[part]).sum())
    return right / len(images) if len(images) else float("nan")
