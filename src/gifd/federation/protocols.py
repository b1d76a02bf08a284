"""Protocol: what a client computes from its private batch and an attacker replays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.optimizers import SGD, LocalOptimizer, Memory
from gifd.kernels import slope
from gifd.model import Model
from gifd.updates import Update


class Protocol(ABC):
    """The forward operator: a pure, differentiable function from images to an update."""

    @abstractmethod
    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The update of one client that holds `images` and starts at `parameters`."""

    @abstractmethod
    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """The update with the sign and scale of a gradient.

        Args:
            update: of all parameters, or of some.
            at: the parameters at which the client began.
        """

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """The parameters at which the client computed gradients, as far as its update shows."""
        return [parameters]

    @property
    def sized(self) -> bool:
        """Whether `as_gradient` has the size of a gradient, and not only about its direction."""
        return True

    def passes(self, images: int) -> tuple[int, ...]:
        """The number of images in each forward pass of a client that holds so many."""
        return (images,)

    def shown(self, name: str) -> Tensor | None:
        """Which numbers of a parameter's update depend on the images; None: all of them.

        A tensor of the parameter's shape, or one that broadcasts to it: 1, or 0 where a defence
        replaced the number.
        """
        return None

    def noise(self, batch: int) -> float:
        """The standard deviation of the noise on every number of an update; 0: no noise.

        In the units of `as_gradient`. The attacker knows it but does not replay it.

        Args:
            batch: the number of images of the update.
        """
        return 0.0

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """The same protocol, with `wrap` applied to what computes each local gradient."""
        return wrap(self)


@final
@dataclass(frozen=True, kw_only=True)
class FedSGD(Protocol):
    """One gradient of the mean loss over the batch: `dL(theta; images, labels) / d theta`.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, AISTATS 2017 (FederatedSGD).
    """

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The gradient at `parameters`."""

        def loss(theta: Mapping[str, Tensor]) -> Tensor:
            return model.loss_at(theta, buffers, images, labels)

        return Update(slope(loss, parameters, (images, labels)))

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """The update itself."""
        return update


@final
@dataclass(frozen=True, kw_only=True)
class FedAvg(Protocol):
    """Local training; the update is the weight delta `theta_T - theta_0`.

    A step takes the gradient of a local batch, adds `proximal (theta - theta_0)`, shortens it to
    `clip`, and hands it to the optimiser. Local batches are cut from the images in their order,
    the last one of an epoch may be smaller, and `steps` runs on into the next epoch.

    Args:
        steps: local steps T, at least 1 (`steps_of` converts epochs).
        lr: learning rate, above 0 and finite; several: of each step.
        batch_size: images in a local batch; None: all of them in every step.
        optimizer: as in `torch.optim`.
        shuffle: seed of a new order in each epoch; None: always the images' own.
        clip: norm to which each local gradient is shortened, as
            `torch.nn.utils.clip_grad_norm_` does; None: not at all.
        proximal: FedProx' mu, at least 0.
        local: computes the gradient of a local step.

    Source: McMahan et al., AISTATS 2017 (FederatedAveraging, ClientUpdate); Li et al., Federated
    Optimization in Heterogeneous Networks, MLSys 2020 (FedProx).
    """

    steps: int
    lr: float | tuple[float, ...]
    batch_size: int | None = None
    optimizer: LocalOptimizer = SGD()
    shuffle: int | None = None
    clip: float | None = None
    proximal: float = 0.0
    local: Protocol = FedSGD()

    def __post_init__(self) -> None:
        if self.steps < 1 or not all(0 < lr < math.inf for lr in self._rates):
            raise InputError(
                "expected FedAvg with steps >= 1 and a finite lr > 0, got "
                f"steps={self.steps}, lr={self.lr}"
            )
        if len(self._rates) != self.steps:
            raise InputError(
                f"expected one learning rate, or one for each of {self.steps} steps, got "
                f"{len(self._rates)}"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"expected a local batch size of at least 1, got {self.batch_size}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise InputError(f"expected a clipping norm above 0 and finite, got {self.clip}")
        if not 0 <= self.proximal < math.inf:
            raise InputError(f"expected FedProx with mu of at least 0, got {self.proximal}")

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The weight delta after `steps` local steps."""
        batches = self.batches(len(images))

        def gradient(theta: Update, step: int) -> Update:
            own = batches[step].to(images.device)
            found = self.local(model, theta, buffers, images[own], labels[own])
            if self.proximal and step:
                found = found.add_scaled(theta - start, self.proximal)
            if self.clip is None:
                return found
            factor = (self.clip / (found.norm() + 1e-6)).clamp(max=1.0)
            return found.map(lambda tensor: tensor * factor)

        start = Update(dict(parameters))
        return self._trained(start, gradient, self.optimizer) - start

    def batches(self, images: int) -> list[Int[Tensor, "b"]]:
        """The numbers of the images in the local batch of each step."""
        found: list[Tensor] = []
        rng = None if self.shuffle is None else torch.Generator().manual_seed(self.shuffle)
        while len(found) < self.steps:
            order = torch.arange(images) if rng is None else torch.randperm(images, generator=rng)
            found += torch.split(order, self.batch_size or images)
        return found[: self.steps]

    def passes(self, images: int) -> tuple[int, ...]:
        """The size of the local batch of each step."""
        return tuple(len(batch) for batch in self.batches(images))

    @staticmethod
    def steps_of(epochs: int, images: int, batch_size: int | None = None) -> int:
        """The local steps of whole epochs over so many images."""
        return epochs * -(-images // (batch_size or images))

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """The gradient if it were equal in all local steps.

        Weight decay is subtracted. For `SGD` this is exact but for clipping; of `Adam` it is the
        mean of the normalised steps, which have the signs of a gradient and not its size.
        """
        *weights, kept = self._response
        start = Update({name: at[name] for name in update}) if kept else None
        moved = update if start is None else update.add_scaled(start, -kept)
        return moved / sum(weights)

    def noise(self, batch: int) -> float:
        """The noise of the local gradients times `sqrt(sum_t w_t^2) / |sum_t w_t|`.

        It is independent in every step, and reaches the update `w_t` times. Its effect on later
        gradients is neglected: it is small for small steps.

        Raises:
            InputError: noise in the steps of an optimiser that is not linear.
        """
        own = self.local.noise(min(self.batch_size or batch, batch))
        if own and self.optimizer.linear != self.optimizer:
            raise InputError(
                f"expected noise in the local gradients of SGD, got it with {self.optimizer}: "
                "what it becomes in the update is not known"
            )
        *weights, _ = self._response
        return own * math.hypot(*weights) / abs(sum(weights))

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """The parameters of the local steps, assumed to lie on the line to the last.

        They are spaced by the learning rates.
        """
        start, rates = Update(dict(parameters)), self._rates
        return [start.add_scaled(update, sum(rates[:t]) / sum(rates)) for t in range(self.steps)]

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` applied to the gradient of each local step."""
        return replace(self, local=self.local.localized(wrap))

    # -- inside ------------------------------------------------------------------------

    @property
    def sized(self) -> bool:
        """Of Adam it has not."""
        return self.optimizer.linear == self.optimizer and self.local.sized

    @property
    def _rates(self) -> tuple[float, ...]:
        return self.lr if isinstance(self.lr, tuple) else (self.lr,) * self.steps

    def _trained(
        self, theta: Update, gradient: Callable[[Update, int], Update], optimizer: LocalOptimizer
    ) -> Update:
        memory: Memory = ()
        for step, lr in enumerate(self._rates):
            slope = gradient(theta, step)
            theta, memory = optimizer.step(theta, slope, memory, lr=lr, number=step + 1)
        return theta

    @property
    def _response(self) -> list[float]:
        """What the update has of each local gradient, and, last, of the first weights.

        Every step is linear in them, so it is taken on their coefficients.
        """
        units = torch.eye(self.steps + 1, dtype=torch.float64)
        start = Update({"": units[-1]})

        def gradient(theta: Update, step: int) -> Update:
            return Update({"": units[step]}).add_scaled(theta - start, self.proximal)

        found: list[float] = (self._trained(start, gradient, self.optimizer.linear) - start)[
            ""
        ].tolist()
        return found
