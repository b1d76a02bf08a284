"""Quantisation: an update with few distinct values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses import zeros
from gifd.federation.defenses.defense import Changed, Defense, like
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.updates import Update

RANDOM = ("ternary", "qsgd")
"""Schemes with unbiased random rounding."""


@final
@dataclass(frozen=True, kw_only=True)
class Quantize(Defense):
    """Every tensor, rounded to the values of a scheme: sign, ternary, qsgd, int8, fp16 or bf16.

    - `sign`: `mean |u|` with the sign of each entry (Bernstein et al., signSGD, ICML 2018; the
      scale of Karimireddy et al., ICML 2019; no error is fed back)
    - `ternary`: with probability `|u_i| / max |u|` the value `max |u|` with the sign of u_i, else
      0 (Wen et al., TernGrad, NeurIPS 2017)
    - `qsgd`: `|u|_2` times one of `levels` steps, with random rounding (Alistarh et al., QSGD,
      NeurIPS 2017)
    - `int8`: the nearest of 255 steps of `max |u| / 127`
    - `fp16`, `bf16`: the nearest number of that format

    Args:
        scheme: one of these.
        levels: of `qsgd`, at least 1.

    Source: Alistarh et al., QSGD, NeurIPS 2017, for `qsgd`; those of the others are above.
    """

    scheme: str
    levels: int = 16

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InputError(f"expected a scheme ({', '.join(SCHEMES)}), got '{self.scheme}'")
        if self.levels < 1:
            raise InputError(f"expected at least 1 level, got {self.levels}")

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Round the update."""
        return Changed(inner=protocol, change=self._round, name=repr(self), seed=seed)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The same rounding with a straight-through gradient; random rounding is ignored."""
        if self.scheme in RANDOM:
            return protocol

        def change(update: Update, rng: torch.Generator) -> Update:
            return update.map(lambda t: t + (self._rounded(t, rng) - t).detach())

        return Changed(inner=protocol, change=change, name=repr(self))

    @classmethod
    def guess(cls, upload: Upload) -> Quantize | None:
        """From the number of distinct magnitudes; number formats from the last bits."""
        seen = upload.update
        values = {n: _magnitudes(t) for n, t in seen.items() if t.numel() >= 4}
        if not values:
            return None
        richest = max(values, key=lambda name: len(values[name]))
        steps = values[richest]
        if len(steps) == 1:
            return cls(scheme="ternary" if zeros.scattered(upload) > 0.05 else "sign")
        most = _in_steps(steps)
        if most is not None:
            return cls(scheme="int8" if most == 127 else "qsgd")
        for scheme, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            if all(torch.equal(tensor.to(dtype).to(tensor), tensor) for tensor in seen.tensors):
                return cls(scheme=scheme)
        return None

    def _round(self, update: Update, rng: torch.Generator) -> Update:
        return update.map(lambda tensor: self._rounded(tensor, rng))

    def _rounded(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        return SCHEMES[self.scheme](tensor, rng, self.levels)


def _magnitudes(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The distinct magnitudes except zero, ascending."""
    sizes = np.unique(tensor.detach().abs().cpu().double().numpy())
    return sizes[sizes > 0]


def _in_steps(sizes: np.ndarray[tuple[int], np.dtype[np.float64]], limit: int = 1000) -> int | None:
    """The largest as a number of steps, if a step divides all; 1 to 3 steps make the smallest."""
    for parts in (1, 2, 3):
        whole = sizes / sizes[0] * parts
        if whole[-1] <= limit and np.abs(whole - whole.round()).max() < 0.01:
            return int(whole[-1].round())
    return None


def _sign(tensor: Tensor, rng: torch.Generator, levels: int) -> Tensor:
    return tensor.sign() * tensor.abs().mean()


def _ternary(tensor: Tensor, rng: torch.Generator, levels: int) -> Tensor:
    most = tensor.abs().max()
    kept = like(tensor, rng, torch.rand) * most < tensor.abs()
    return tensor.sign() * most * kept


def _qsgd(tensor: Tensor, rng: torch.Generator, levels: int) -> Tensor:
    length = tensor.square().sum().sqrt()
    steps = tensor.abs() / length.clamp_min(torch.finfo(tensor.dtype).tiny) * levels
    up = like(tensor, rng, torch.rand) < steps - steps.floor()
    return tensor.sign() * length * (steps.floor() + up) / levels


def _int8(tensor: Tensor, rng: torch.Generator, levels: int) -> Tensor:
    step = (tensor.abs().max() / 127).clamp_min(torch.finfo(tensor.dtype).tiny)
    return (tensor / step).round() * step


def _cast(dtype: torch.dtype) -> Callable[[Tensor, torch.Generator, int], Tensor]:
    return lambda tensor, rng, levels: tensor.to(dtype).to(tensor.dtype)


SCHEMES: dict[str, Callable[[Tensor, torch.Generator, int], Tensor]] = {
    "sign": _sign,
    "ternary": _ternary,
    "qsgd": _qsgd,
    "int8": _int8,
    "fp16": _cast(torch.float16),
    "bf16": _cast(torch.bfloat16),
}
