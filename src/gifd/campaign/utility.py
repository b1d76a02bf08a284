"""Utility: the cost of a defence, in the updates and in the accuracy of the trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.dealing import held_out
from gifd.federation.defenses import DPSGD, Defense, check_order, wrapped
from gifd.federation.defenses.dpsgd import accountant_installed
from gifd.federation.protocols import FedSGD, Protocol
from gifd.federation.servers import Reply, Server, mean_gradient
from gifd.federation.simulation import Work, accuracy, rounds_of
from gifd.model import Model
from gifd.training import ImageSet


@dataclass(frozen=True, kw_only=True)
class Utility:
    """The quality of the defended updates and of the trained model.

    Args:
        accuracy: of the final model on held-out images, in [0, 1].
        cosine: between defended and undefended updates, averaged over rounds; None if they
            belong to different models.
        length: of a defended update relative to an undefended one, likewise.
        epsilon: the privacy budget at delta = 1e-5, for DP-SGD with noise if Opacus is
            installed.
    """

    accuracy: float
    cosine: float | None
    length: float | None
    epsilon: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """A federation to simulate: the arguments of `utility`."""

    model: Model
    data: ImageSet
    defenses: tuple[Defense, ...]
    rounds: int
    clients: int
    batch: int
    seed: int

    def run(self, callback: Callable[[int, float], None] | None = None) -> Utility:
        """Run it.

        Raises:
            InputError: see `utility`.
        """
        return utility(
            self.model,
            self.data,
            self.defenses,
            rounds=self.rounds,
            clients=self.clients,
            batch=self.batch,
            seed=self.seed,
            callback=callback,
        )


def utility(
    model: Model,
    data: ImageSet,
    defenses: Sequence[Defense] = (),
    *,
    protocol: Protocol | None = None,
    rounds: int = 200,
    clients: int = 8,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> Utility:
    """Simulate a short federation of clients with these defences.

    The images are distributed over the clients at random; a fifth is held out. In every round
    each client computes the defended update of a batch of its own. The server uses the mean as
    the gradient of Adam, so that the scale of a defended update does not matter.

    Args:
        model: the initial model; it is not modified.
        data: labelled images.
        defenses: of every client.
        protocol: what a client computes; FedSGD by default.
        rounds: number of rounds.
        clients: clients per round.
        batch: images per client.
        lr: the server's learning rate.
        seed: seed of all randomness.
        callback: called with each round and the loss on its last client's batch.

    Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (FedAdam).

    Raises:
        InputError: images without labels, or too few for the clients' batches.
    """
    check_order(defenses)
    if data.labels is None:
        raise InputError("expected labelled images to learn from, got none with labels")
    rng = torch.Generator().manual_seed(seed)
    held, taught = held_out(len(data.labels), rng)
    shards = taught.chunk(clients)
    if min(map(len, shards)) < batch or len(shards) < clients:
        raise InputError(
            f"expected at least {batch} images for each of {clients} clients, got "
            f"{len(taught)} in all"
        )
    plain, images, labels = protocol or FedSGD(), data.images, data.labels
    shape = tuple(images.shape[1:])
    before = list(model.parameters)
    for defense in defenses:
        model = defense.prepare(model, shape)
    alike = before == list(model.parameters)

    def plan(number: int, client: int) -> Work:
        own = shards[client][torch.randint(len(shards[client]), (batch,), generator=rng)]
        own_seed = (seed * rounds + number - 1) * clients + client
        return Work(
            pixels=images[own],
            labels=labels[own],
            protocol=wrapped([d.drawn(own_seed) for d in defenses], plain, own_seed),
        )

    cosines, lengths = [], []
    for done in rounds_of(model, plan, clients=clients, rounds=rounds, server=_FedAdam(lr)):
        at = done.before.parameters
        if alike and done.number % 10 == 1:
            first, sent = done.works[0], plain.as_gradient(done.replies[0].update, at)
            bare = replace(first, protocol=plain).done(done.before)
            true = plain.as_gradient(bare.update, at)
            norms = float(true.norm()), float(sent.norm())
            lengths.append(norms[1] / max(norms[0], 1e-30))
            cosines.append(float(true.dot(sent)) / max(norms[0] * norms[1], 1e-30))
        model = done.after
        if callback is not None:
            with torch.no_grad():
                seen = done.works[-1].on(model.device)
                loss = model.loss_at(model.parameters, model.buffers, *seen)
            callback(done.number - 1, float(loss))
    dp = next((d for d in defenses if isinstance(d, DPSGD) and d.noise > 0), None)
    return Utility(
        accuracy=accuracy(model, images[held], labels[held]),
        cosine=sum(cosines) / len(cosines) if cosines else None,
        length=sum(lengths) / len(lengths) if lengths else None,
        epsilon=None
        if dp is None or not accountant_installed()
        else dp.epsilon(steps=rounds, sample_rate=batch * clients / len(taught)),
    )


class _FedAdam(Server):
    """Adam on the mean gradient."""

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.theta: dict[str, Tensor] = {}

    def __call__(self, model: Model, replies: Sequence[Reply]) -> Mapping[str, Tensor]:
        """The weights after a step; those of the first round begin it."""
        if not self.theta:
            self.theta = {n: p.clone().requires_grad_() for n, p in model.parameters.items()}
            self.adam = torch.optim.Adam(list(self.theta.values()), lr=self.lr)
        gradient = mean_gradient(model, replies)
        for name, parameter in self.theta.items():
            parameter.grad = gradient[name]
        self.adam.step()
        return {name: parameter.detach().clone() for name, parameter in self.theta.items()}
