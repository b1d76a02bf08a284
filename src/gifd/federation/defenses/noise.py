"""Noise on an update, and an attacker that knows its strength."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from scipy.stats import kstest
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Changed, Defense, Noised, like
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.updates import Update


@dataclass(frozen=True, kw_only=True)
class _Noise(Defense):
    """Independent noise on every number of the update.

    Args:
        std: standard deviation, above 0, in the units of the update.
    """

    std: float

    distribution: ClassVar[str]
    """Its name in SciPy."""
    std_over_scale: ClassVar[float]
    median_over_std: ClassVar[float]
    """Of the magnitude."""

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise InputError(f"expected a noise std above 0 and finite, got {self.std}")

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Add it to the update."""

        def change(update: Update, rng: torch.Generator) -> Update:
            return update.map(lambda tensor: tensor + self.std * self._draw(tensor, rng))

        return Changed(inner=protocol, change=change, name=repr(self), seed=seed)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """No noise, but its standard deviation (`gifd.search.Comparison` uses it)."""
        sent = upload.update
        still = {name: torch.zeros_like(tensor) for name, tensor in sent.items()}
        scale = protocol.as_gradient(sent, still).norm() / sent.norm().clamp_min(1e-30)
        return Noised(inner=protocol, std=self.std * float(scale))

    @classmethod
    def guess(cls, upload: Upload) -> Defense | None:
        """The standard deviation of a large tensor that contains almost only noise.

        Most entries of a gradient are far smaller than its largest ones, so the median magnitude
        of such a tensor is that of the noise. The guess uses the tensor with the smallest median,
        if the second smallest is within a factor of 1.4 (those of gradients differ more) and the
        numbers follow this kind of noise and not the other.
        """
        large = [t.flatten() for t in upload.update.tensors if t.numel() >= 1000]
        if len(large) < 2 or any(int((t == 0).sum()) > 0.001 * t.numel() for t in large):
            return None
        by_spread = sorted(large, key=lambda tensor: float(tensor.abs().median()))
        least, after = (float(tensor.abs().median()) for tensor in by_spread[:2])
        if least == 0 or after > 1.4 * least:
            return None
        sample = by_spread[0][:100_000].detach().cpu().double().numpy()
        away = {kind: kind._away(sample, least) for kind in (Noise, Laplace)}
        if min(away, key=lambda kind: away[kind]) is not cls or away[cls] > 0.04:
            return None
        return cls(std=least / cls.median_over_std)

    @classmethod
    def _away(cls, sample: np.ndarray[tuple[int], np.dtype[np.float64]], median: float) -> float:
        """The Kolmogorov-Smirnov distance to this noise with the given median magnitude."""
        scale = median / cls.median_over_std / cls.std_over_scale
        return float(kstest(sample, cls.distribution, args=(0.0, scale)).statistic)

    @abstractmethod
    def _draw(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        """With standard deviation 1 and the tensor's shape."""


@final
@dataclass(frozen=True, kw_only=True)
class Noise(_Noise):
    """Gaussian noise on every number of the update.

    Args:
        std: standard deviation, above 0; 0.1 in the GIFD paper.

    Source: Zhu et al., Deep Leakage from Gradients, NeurIPS 2019.
    """

    distribution = "norm"
    std_over_scale = 1.0
    median_over_std = 0.67449

    def _draw(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        return like(tensor, rng, torch.randn)


@final
@dataclass(frozen=True, kw_only=True)
class Laplace(_Noise):
    """Laplacian noise on every number of the update.

    Args:
        std: standard deviation, above 0: `sqrt(2)` times the scale.

    Source: Zhu et al., Deep Leakage from Gradients, NeurIPS 2019.
    """

    distribution = "laplace"
    std_over_scale = math.sqrt(2)
    median_over_std = math.log(2) / math.sqrt(2)

    def _draw(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        uniform = like(tensor, rng, torch.rand) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp_max(0.4999999)) / math.sqrt(2)
