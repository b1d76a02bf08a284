"""Learned: a network from updates to images, trained on images of the attacker's own."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.search.following import following
from gifd.search.initializers import Beginning, Initializer
from gifd.search.sources import Leaves, Source
from gifd.search.standing import Standing, apart, flat
from gifd.task import differ
from gifd.updates import Update

_log = logging.getLogger("gifd")


@final
class Hashed:
    """An update as one vector, shortened by feature hashing if it is long.

    Each number is added to a bin that is drawn for it once. The noise that the attacker believes
    in is added to the updates of other images, and numbers that a defence hides are 0.

    Args:
        observation: the update, and the attacker's beliefs.
        labels: of the private images.
        most: length of the vector at most.
        rng: draws the bins and the noise.

    Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009, as
    used by Wu et al. (see `Learned`).
    """

    def __init__(
        self,
        observation: Observation,
        labels: Shaped[Tensor, "B *T"],
        most: int,
        rng: torch.Generator,
    ) -> None:
        self._observation, self._rng = observation, rng
        self._labels = labels.to(observation.model.device)
        size = observation.update.numel
        self.length = min(most, size)
        bins = torch.arange(size) if size <= most else torch.randint(most, (size,), generator=rng)
        self._bins = bins.to(observation.model.device)
        std = observation.protocol.noise(len(labels))
        self._noise = std * bins.bincount(minlength=self.length).to(self._bins.device).sqrt()
        self.observed = self._vector(observation.gradient)

    def __call__(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "F"]:
        """That of the update of these images, with noise."""
        with torch.no_grad():
            update = self._observation.replay(images, self._labels)
            found = self._vector(self._observation.as_gradient(update))
        if bool(self._noise.any()):
            drawn = torch.randn(found.shape, generator=self._rng)
            found = found + self._noise.to(found) * drawn.to(found)
        return found

    def _vector(self, gradient: Update) -> Float[Tensor, "F"]:
        parts = []
        for name, tensor in gradient.items():
            shown = self._observation.protocol.shown(name)
            parts.append((tensor if shown is None else tensor * shown).flatten())
        numbers = torch.cat(parts)
        return numbers.new_zeros(self.length).index_add(0, self._bins, numbers)


@final
@dataclass(frozen=True, kw_only=True)
class Learned(Initializer):
    """Begin at what a trained network says of the observed update.

    A perceptron with two hidden layers maps the hashed update of a batch to its images. It is
    trained on batches of `source`, whose updates are computed as the client's: with its labels,
    protocol and defences, as far as the attacker believes in them. The loss is the squared error,
    for the best assignment of the outputs to the images; only images of one label are exchanged.
    Adam's rate is divided by ten after half of the epochs. The epoch with the least loss on a
    fifth of the batches, which are withheld, counts.

    An update takes about a third of a victim gradient, so three are charged as one evaluation.
    The training uses no victim, and is not charged.

    Args:
        evaluations: a third of the number of batches.
        source: of their images.
        hidden: units of each hidden layer.
        inputs: length of the hashed update at most.
        epochs: of training.
        lr: Adam's learning rate.
        fit: steps of Adam towards the network's images, in a space other than `Pixels`.

    Source: Wu et al., Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in
    Federated Learning, UAI 2023, arXiv:2210.10880.

    Differs from the official code: inputs are standardised, and hashed to a length that fits the
    memory, there to half of it; the images of the source have no labels of their own and get
    those of the private images.
    """

    evaluations: int = 1000
    source: Source = Leaves()
    hidden: int = 3000
    inputs: int = 4096
    epochs: int = 200
    lr: float = 1e-4
    fit: int = 80

    PASSES: ClassVar[int] = 3
    """Updates per evaluation."""
    FEWEST: ClassVar[int] = 3
    """Batches; with fewer the searches stay where they are."""
    AT_ONCE: ClassVar[int] = 256
    """Batches in a step of Adam."""

    def __post_init__(self) -> None:
        counts = (self.evaluations, self.hidden, self.inputs, self.epochs, self.fit)
        if min(counts) < 1 or not self.lr > 0:
            raise InputError(
                "expected a network with evaluations, hidden, inputs, epochs and fit >= 1 and "
                f"lr > 0, got {', '.join(map(str, counts))} and {self.lr}"
            )

    def at_cost(self, evaluations: int) -> Initializer:
        """With this many evaluations; at least one."""
        return replace(self, evaluations=max(1, evaluations))

    def __call__(self, beginning: Beginning) -> Standing:
        """The searches at the states that show the network's images."""
        standing = beginning.entered(beginning.before)
        goals = []
        for n, r in torch.cartesian_prod(*map(torch.arange, standing.alive.shape)).tolist():
            goals.append(self._images(beginning, n, standing.labels[n, r]))
        state = following(
            beginning.space,
            beginning.context,
            flat(standing.state),
            torch.stack(goals).to(standing.distance.device),
            steps=self.fit,
            lr=0.05,
        )
        return replace(standing, state=apart(state, len(standing.alive)))

    def _images(
        self, beginning: Beginning, n: int, labels: Shaped[Tensor, "B *T"]
    ) -> Float[Tensor, "B C H W"]:
        context, rng = beginning.context, beginning.draws[n].rng
        members = self.PASSES * self.evaluations
        drawn = self.source(context, members * context.batch, rng)
        images = drawn.view(members, context.batch, *drawn.shape[1:])
        hashed = Hashed(beginning.observations[n], labels, self.inputs, rng)
        inputs = torch.stack([hashed(batch) for batch in images]).float()
        mean, size = inputs.mean(0), inputs.std(correction=0).clamp_min(1e-30)
        network = self._trained((inputs - mean) / size, images.float(), labels, rng)
        with torch.no_grad():
            found: Tensor = network((hashed.observed.float() - mean) / size)
        return found.view(images.shape[1:]).clamp(0, 1)

    def _trained(
        self,
        inputs: Float[Tensor, "M F"],
        images: Float[Tensor, "M B C H W"],
        labels: Shaped[Tensor, "B *T"],
        rng: torch.Generator,
    ) -> nn.Module:
        members, outputs = len(inputs), images[0].numel()
        network = nn.Sequential(
            _linear(inputs.shape[1], self.hidden, rng),
            nn.ReLU(),
            _linear(self.hidden, self.hidden, rng),
            nn.ReLU(),
            _linear(self.hidden, outputs, rng),
        ).to(inputs.device)
        apart = differ(labels)
        held = max(1, members // 5)
        adam = torch.optim.Adam(network.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(adam, max(1, self.epochs // 2))
        best, least = copy.deepcopy(network), torch.inf
        for _ in range(self.epochs):
            order = held + torch.randperm(members - held, generator=rng)
            for own in torch.split(order.to(inputs.device), self.AT_ONCE):
                with torch.enable_grad():
                    loss = matched(network(inputs[own]), images[own], apart)
                    adam.zero_grad()
                    torch.autograd.backward(loss)
                adam.step()
            schedule.step()
            with torch.no_grad():
                error = float(matched(network(inputs[:held]), images[:held], apart))
            if error < least:
                best, least = copy.deepcopy(network), error
        _log.debug("learned: withheld error %.4f", least**0.5)
        return best


def matched(
    found: Float[Tensor, "M N"], images: Float[Tensor, "M B C H W"], apart: Tensor
) -> Float[Tensor, ""]:
    """Mean squared error for the best assignment of outputs to images.

    Args:
        found: (M, B C H W).
        images: what they should be.
        apart: (B, B) which are not exchanged.
    """
    batch = images.shape[1]
    ours, theirs = found.view(len(images), batch, -1), images.flatten(2)
    if batch == 1:
        return (ours - theirs).square().mean()
    errors = torch.stack(
        [(ours - theirs[:, b : b + 1]).square().mean(2) for b in range(batch)], 1
    )  # (M, image, output)
    costs = errors.detach().masked_fill(apart.to(errors.device), 1e6).cpu().numpy()
    chosen = [own[linear_sum_assignment(cost)] for own, cost in zip(errors, costs, strict=True)]
    return torch.cat(chosen).mean()


def _linear(ins: int, outs: int, rng: torch.Generator) -> nn.Linear:
    """PyTorch's initial weights, from a generator of their own."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(ins, outs)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor.uniform_(-(ins**-0.5), ins**-0.5, generator=rng)
    return layer
