"""Statistics: numbers that tell updates of one protocol from those of another."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import ModelError
from gifd.updates import Update


@final
@dataclass(frozen=True)
class Kind:
    """A statistic of one tensor, and what an unusual value of it means.

    Args:
        name: of the statistic.
        tensor: of the parameter.
    """

    name: str
    tensor: str

    WORDS: ClassVar[dict[str, tuple[str, str]]] = {
        "zeros": (
            "has too many zeros (compression, or parts that are not trained)",
            "has too few zeros (noise, weight decay, or another mode of batch norm)",
        ),
        "along": (
            "points along the weights (weight decay, or whole weights)",
            "points against the weights (weight decay, or the wrong sign)",
        ),
        "likeness": (
            "is too similar to updates of other images",
            "has too little in common with updates of other images (the wrong sign, other weights, "
            "labels or optimiser, or another mode of batch norm)",
        ),
        "evenness": (
            "has numbers of too even a size (Adam, signs or rounding)",
            "has too few large numbers (compression)",
        ),
        "size": (
            "is too large (another learning rate, number of steps or images, optimiser or loss)",
            "is too small (another learning rate, number of steps or images, optimiser or loss, or "
            "a defence)",
        ),
        "rank": (
            "has more directions than these images leave (more images, noise, weight decay, Adam "
            "or compression)",
            "has fewer directions than these images leave (fewer images)",
        ),
        "span": (
            "has more directions than these images leave (more images, noise, weight decay, Adam "
            "or compression)",
            "has fewer directions than these images leave (fewer images)",
        ),
        "sum": ("does not sum to 0 (noise, Adam or another loss)",) * 2,
    }
    """Of too high a value and of too low a one; the surest signs first."""

    def told(self, higher: bool) -> str:
        """An unusual value in words."""
        return f"'{self.tensor}' {self.WORDS[self.name][0 if higher else 1]}"


class Statistics:
    """The statistics of updates of one model by one believed protocol.

    Of each tensor of an update, in a gradient's units:

    - size: the logarithm of its root mean square
    - evenness: the logarithm of its mean magnitude over that; 0 for signs
    - zeros: the share of zeros
    - along: the cosine to the weights
    - likeness: the mean cosine to the other updates, of at most `SAMPLE` of its numbers

    Of the head's weight also, as logarithms, the part beyond as many singular values as there are
    images (rank), and the last of these (span); of its bias the sum, relative to that of the
    magnitudes.

    Args:
        observation: whose beliefs are used.
    """

    SAMPLE: ClassVar[int] = 2048
    ROUNDING: ClassVar[float] = 1e-3
    """A part beyond the rank that rounding to half precision leaves."""

    def __init__(self, observation: Observation) -> None:
        model = observation.model
        self._images = observation.ledger.batch_size
        self._weight: str | None = None
        self._bias: str | None = None
        with suppress(ModelError):  # without a linear head
            head = model.head(observation.ledger.image_shape)
            self._weight, self._bias = head.weight, head.bias
        rng = torch.Generator().manual_seed(0)
        self._places = {
            name: torch.randint(tensor.numel(), (self.SAMPLE,), generator=rng).to(tensor.device)
            for name, tensor in model.parameters.items()
            if tensor.numel() > self.SAMPLE
        }
        self._weights = {name: t.double().flatten() for name, t in model.parameters.items()}
        self._numbers: list[dict[Kind, float]] = []
        self._samples: dict[str, list[Float[Tensor, "S"]]] = {n: [] for n in model.parameters}

    def add(self, gradient: Update) -> None:
        """Count an update; only its statistics and samples are kept."""
        self._numbers.append(self._of(gradient))
        for name, tensor in gradient.items():
            numbers = tensor.flatten()
            places = self._places.get(name)
            self._samples[name].append(numbers if places is None else numbers[places])

    @property
    def kinds(self) -> list[Kind]:
        """What the columns of the table are."""
        return [*self._numbers[0], *(Kind("likeness", name) for name in self._samples)]

    def table(self) -> Float[Tensor, "N K"]:
        """The statistics of the updates that were added, in this order."""
        rows = [list(each.values()) for each in self._numbers]
        return torch.cat([torch.tensor(rows, dtype=torch.float64), self._likeness()], 1)

    def _of(self, gradient: Update) -> dict[Kind, float]:
        found: dict[Kind, float] = {}
        for name, tensor in gradient.items():
            numbers, weights = tensor.double().flatten(), self._weights[name]
            size = float(numbers.square().mean().sqrt()) + _TINY
            even = float(numbers.abs().mean()) / size
            lengths = float(numbers.norm() * weights.norm())
            found[Kind("size", name)] = math.log(size)
            found[Kind("evenness", name)] = math.log(even + self.ROUNDING)
            found[Kind("zeros", name)] = float((numbers == 0).double().mean())
            found[Kind("along", name)] = float(numbers @ weights) / (lengths + _TINY)
        if self._weight is not None:
            beyond, last = self._directions(gradient[self._weight])
            found[Kind("rank", self._weight)] = beyond
            found[Kind("span", self._weight)] = last
        if self._bias is not None and self._bias in gradient:
            bias = gradient[self._bias].double()
            found[Kind("sum", self._bias)] = float(bias.sum() / (bias.abs().sum() + _TINY))
        return found

    def _directions(self, weight: Tensor) -> tuple[float, float]:
        values = torch.linalg.svdvals(weight.detach().cpu().double().flatten(1))
        images = min(self._images, len(values))
        whole = values.norm() + _TINY
        beyond, last = values[images:].norm() / whole, values[images - 1] / whole
        return math.log10(float(beyond) + self.ROUNDING), math.log10(float(last) + self.ROUNDING)

    def _likeness(self) -> Float[Tensor, "N K"]:
        columns = []
        for samples in self._samples.values():
            rows = torch.stack(samples).double()
            rows = rows / (rows.norm(dim=1, keepdim=True) + _TINY)
            cosines = rows @ rows.T
            columns.append((cosines.sum(1) - cosines.diagonal()) / (len(rows) - 1))
        return torch.stack(columns, 1).cpu()


_TINY = 1e-30
