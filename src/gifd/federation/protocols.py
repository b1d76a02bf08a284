"""Protocol: what a client computes from its private batch and an attacker replays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError
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
    def as_gradient(self, update: Update) -> Update:
        """The update with the sign and scale of a gradient, for label inference."""

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """The parameters at which the client computed gradients, as far as its update shows."""
        return [parameters]

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

    def as_gradient(self, update: Update) -> Update:
        """The update itself."""
        return update


@final
@dataclass(frozen=True, kw_only=True)
class FedAvg(Protocol):
    """Local SGD; the update is the weight delta `theta_T - theta_0`.

    Step t uses local batch `t mod (B / batch_size)` of the images in their order, so
    `steps = epochs * B / batch_size` runs whole epochs. With momentum m the step is
    `v <- m v + g; theta <- theta - lr v`, as in `torch.optim.SGD`.

    Args:
        steps: local steps T, at least 1.
        lr: learning rate, above 0 and finite.
        batch_size: images in a local batch; None: all of them in every step.
        momentum: in [0, 1).
        local: computes the gradient of a local step.

    Source: McMahan et al., AISTATS 2017 (FederatedAveraging, ClientUpdate).
    """

    steps: int
    lr: float
    batch_size: int | None = None
    momentum: float = 0.0
    local: Protocol = FedSGD()

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.lr < math.inf or not 0 <= self.momentum < 1:
            raise InputError(
                "expected FedAvg with steps >= 1, a finite lr > 0 and momentum in [0, 1), got "
                f"steps={self.steps}, lr={self.lr}, momentum={self.momentum}"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"expected a local batch size of at least 1, got {self.batch_size}")

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The weight delta after `steps` local steps."""
        size = self.batch_size or len(images)
        if len(images) % size:
            raise InputError(
                f"expected a batch that local batches of {size} divide, got {len(images)} images"
            )
        start = Update(dict(parameters))
        theta, velocity = start, None
        for step in range(self.steps):
            first = (step % (len(images) // size)) * size
            batch = slice(first, first + size)
            gradient = self.local(model, theta, buffers, images[batch], labels[batch])
            kept = None if velocity is None else velocity * self.momentum
            velocity = gradient if kept is None else kept + gradient
            theta = theta.add_scaled(velocity, -self.lr)
        return theta - start

    def as_gradient(self, update: Update) -> Update:
        """The gradient if it were equal in all local steps: `-update / (lr sum_t w_t)`.

        `w_t = 1 + m + ... + m^t` is the momentum after t + 1 equal gradients, relative to one.
        """
        return update * (-1.0 / (self.lr * sum(self._weights())))

    def noise(self, batch: int) -> float:
        """The noise of the local gradients times `sqrt(sum_t w_t^2) / sum_t w_t`.

        It is independent in every step. The noise of step t stays in the momentum and reaches the
        update `w_(T-1-t)` times. Its effect on later gradients is neglected: it is small for
        small steps.
        """
        weights = self._weights()
        return self.local.noise(self.batch_size or batch) * math.hypot(*weights) / sum(weights)

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """The parameters of the local steps, assumed to lie evenly on the line to the last."""
        start = Update(dict(parameters))
        return [start.add_scaled(update, t / self.steps) for t in range(self.steps)]

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` applied to the gradient of each local step."""
        return replace(self, local=self.local.localized(wrap))

    def _weights(self) -> list[float]:
        """`w_t = 1 + m + ... + m^t` for every step t."""
        found = [1.0]
        while len(found) < self.steps:
            found.append(1.0 + self.momentum * found[-1])
        return found
