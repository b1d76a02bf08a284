"""DP-SGD: clipped gradients of single examples plus noise, which guarantees privacy."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm

from gifd.errors import InputError
from gifd.federation.defenses.defense import Defense, Local, like
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Every example's gradient clipped, then Gaussian noise, in every local step.

    `1/B (sum_b g_b min(1, norm / |g_b|) + noise norm N(0, 1))` takes the gradient's place.

    Args:
        noise: the noise multiplier, at least 0; without noise there is no guarantee.
        norm: C, the bound on the length of each example's gradient, above 0.

    Source: Abadi et al., Deep Learning with Differential Privacy, CCS 2016. It gives the same
    numbers as Opacus (1e-6 is added to |g_b|).
    """

    noise: float
    norm: float = 1.0

    inside = True

    ORDERS: ClassVar[list[float]] = [
        *(1 + x / 100 for x in (2, 5)),
        *(1 + x / 10 for x in range(1, 100)),
        *(float(order) for order in [*range(12, 64), 128, 256, 512]),
    ]
    """Orders of the Renyi divergence: those of Opacus and a few more at both ends."""

    def __post_init__(self) -> None:
        if not self.noise >= 0 or not self.norm > 0:
            raise InputError(
                "expected DP-SGD with noise >= 0 and norm > 0, got "
                f"noise={self.noise}, norm={self.norm}"
            )

    @property
    def proves(self) -> bool:
        """With noise."""
        return self.noise > 0

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Clip and add fresh noise in every local step."""
        rng = _Stream(seed)
        return protocol.localized(lambda inner: _PerExample(inner=inner, dp=self, draw=rng))

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The same clipping without the noise, whose strength is known."""
        return protocol.localized(lambda inner: _PerExample(inner=inner, dp=self, draw=None))

    def epsilon(self, *, steps: int, sample_rate: float, delta: float = 1e-5) -> float:
        """The privacy budget after training, by Opacus' accountant (extra `dp`).

        Args:
            steps: of training, in all rounds together.
            sample_rate: the share of all examples in one batch.
            delta: the probability that the guarantee fails.

        Raises:
            InputError: Opacus is not installed, or there is no noise.
        """
        if self.noise == 0:
            return float("inf")
        try:
            from opacus.accountants import RDPAccountant
        except ImportError:
            raise InputError(
                "expected Opacus for an epsilon, got none: pip install 'gifd[dp]'"
            ) from None
        accountant = RDPAccountant()
        accountant.history = [(self.noise, sample_rate, steps)]
        with warnings.catch_warnings():  # at the first and last order the bound is valid but loose
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta, alphas=self.ORDERS))


def accountant_installed() -> bool:
    """Whether Opacus is installed to compute epsilon."""
    return importlib.util.find_spec("opacus") is not None


class _Stream:
    """Fresh random numbers at every call, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, tensor: Tensor) -> Tensor:
        return like(tensor, self.rng, torch.randn)


@dataclass(frozen=True, kw_only=True)
class _PerExample(Local):
    """Gradients of single examples by vmap, clipped and averaged, plus noise if drawn."""

    dp: DPSGD
    draw: Callable[[Tensor], Tensor] | None

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The private gradient."""
        if any(isinstance(m, _BatchNorm) and m.training for m in model.module.modules()):
            raise InputError(
                "expected a model whose examples do not see each other for DP-SGD, got batch norm "
                "in train mode: call eval() or use group norm"
            )

        def clipped(image: Tensor, label: Tensor) -> dict[str, Tensor]:
            own = self.inner(model, parameters, buffers, image[None], label[None])
            factor = (self.dp.norm / (own.norm() + 1e-6)).clamp(max=1.0)
            return {name: tensor * factor for name, tensor in own.items()}

        each = vmap(clipped, randomness="different")(images, labels)
        mean = {name: tensor.mean(0) for name, tensor in each.items()}
        if self.draw is None or self.dp.noise == 0:
            return Update(mean)
        std = self.noise(len(images))
        return Update({name: tensor + std * self.draw(tensor) for name, tensor in mean.items()})

    def noise(self, batch: int) -> float:
        """`noise norm / B`: the noise of the sum, divided by the batch size."""
        return self.dp.noise * self.dp.norm / batch

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` around each example's gradient before clipping: the guarantee still holds."""
        return replace(self, inner=self.inner.localized(wrap))

    def __repr__(self) -> str:
        return f"{self.dp!r} of {self.inner!r}"
