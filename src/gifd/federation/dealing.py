"""Dealing: which client holds which images, from equal shares to classes of its own."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.errors import InputError


def held_out(count: int, rng: torch.Generator) -> tuple[Int[Tensor, "H"], Int[Tensor, "T"]]:
    """The numbers of a random fifth of the images, to measure accuracy, and of the others."""
    order = torch.randperm(count, generator=rng)
    return order[: count // 5], order[count // 5 :]


def dealt(
    labels: Int[Tensor, "N"], *, clients: int, own: float, rng: torch.Generator
) -> tuple[Int[Tensor, "..."], ...]:
    """Deal images to clients by their classes; each image goes to one client.

    The classes are dealt to the clients in a random order, one after the other, so each class has
    one owner; with fewer classes than clients some own none. An image goes to the owner of its
    class with probability `own`, otherwise to one of the other clients, all equally likely.
    `own = 1 / clients` is IID.

    Args:
        labels: the images' classes.
        clients: how many, at least 1.
        own: in [0, 1]; the literature takes 0.1 to 0.99 for 10 clients.
        rng: of all draws.

    Returns:
        the numbers of each client's images, in ascending order.

    Source: Fang et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning,
    USENIX Security 2020, with clients in the place of its groups of clients.

    Raises:
        InputError: no client, no image, or a probability out of range.
    """
    if clients < 1 or not len(labels):
        raise InputError(
            f"expected images and at least one client, got {len(labels)} and {clients}"
        )
    if not 0 <= own <= 1 or (clients == 1 and own < 1):
        raise InputError(
            f"expected a probability in [0, 1] (1 for one client) that an image goes to the owner "
            f"of its class, got {own:g}"
        )
    classes, kind = torch.unique(labels, return_inverse=True)
    turn = torch.randperm(len(classes), generator=rng)
    owner = torch.randperm(clients, generator=rng)[turn % clients][kind]
    at_owner = torch.rand(len(labels), generator=rng, dtype=torch.float64) < own
    elsewhere = (owner + torch.randint(1, max(clients, 2), owner.shape, generator=rng)) % clients
    holder = torch.where(at_owner, owner, elsewhere)
    return tuple((holder == client).nonzero().flatten() for client in range(clients))
