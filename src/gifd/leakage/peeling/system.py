"""System: the equations of all layers that read one tensor, solved for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gifd.leakage.peeling.circuit import Read
from gifd.leakage.peeling.layers import Convolution


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """A least-squares solution and what it leaves unexplained.

    Args:
        fed: the layers' common input.
        away: relative residual.
        condition: of the matrix.
        span: (E, Q) orthonormal columns with the span of the matrix.
        missed: (E, I) residual.
        blocks: layer -> its first row, and the divisor of its rows.
    """

    fed: Tensor
    away: float
    condition: float
    span: Float[Tensor, "E Q"]
    missed: Float[Tensor, "E I"]
    blocks: Mapping[str, tuple[int, float]]

    MOST: ClassVar[int] = 2500
    """Unknowns per channel at most."""
    CONDITION: ClassVar[float] = 1e4
    """Largest condition: a float32 gradient then still gives three digits."""

    @classmethod
    def of(
        cls, reads: Sequence[Read], slopes: Sequence[Tensor], gradient: Mapping[str, Tensor]
    ) -> System | None:
        """Solve; None if the equations do not determine the input.

        Args:
            reads: the layers, which read one tensor.
            slopes: of their outputs.
            gradient: of their weights.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        blocks: dict[str, tuple[int, float]] = {}
        first = 0
        if reads[0].layer.rows(reads[0].fed).shape[0] > cls.MOST:
            return None
        for read, slope in zip(reads, slopes, strict=True):
            matrix, values = read.layer.equations(slope, gradient[read.layer.weight], read.fed)
            size = float(values.square().mean().sqrt())
            if size > 0:
                parts.append((matrix / size, values / size))
                blocks[read.layer.weight] = (first, size)
                first += len(matrix)
        if not parts or parts[0][0].shape[1] > first:
            return None
        matrix, values = (torch.cat(each) for each in zip(*parts, strict=True))
        if not bool(matrix.isfinite().all()):
            return None
        powers, basis = torch.linalg.eigh(matrix.T @ matrix)
        if not float(powers[0]) * cls.CONDITION**2 > float(powers[-1]):
            return None
        span = matrix @ (basis / powers.sqrt())
        inner = span.T @ values
        missed = values - span @ inner
        return cls(
            fed=reads[0].layer.from_rows(basis @ (inner / powers.sqrt()[:, None]), reads[0].fed),
            away=float(missed.norm() / values.norm()),
            condition=float((powers[-1] / powers[0]).sqrt()),
            span=span,
            missed=missed,
            blocks=blocks,
        )

    def suspects(
        self,
        layer: Convolution,
        effect: Float[Tensor, "B O h w"],
        doubt: Bool[Tensor, "B O h w"],
        most: int,
    ) -> Int[Tensor, "K 4"]:
        """The places, at most so many, whose slope alone explains the residual best.

        Of either sign: two wrong slopes that see the same patch hide each other's sign.

        Args:
            layer: whose output has the slopes.
            effect: the slopes.
            doubt: the places to choose from.
            most: K at most.
        """
        batch, channels, height, width = effect.shape
        first, size = self.blocks[layer.weight]
        count = layer.kernel[0] * layer.kernel[1]
        missed = self.missed[first : first + channels * count].view(channels, count, -1)
        patches = layer.patches(self.fed)  # (Q, I k)
        seen = patches @ missed.transpose(1, 2).flatten(1).T * size  # (Q, O)
        seen = seen.view(batch, height, width, channels).permute(0, 3, 1, 2)
        lengths = patches.norm(dim=1).view(batch, 1, height, width)
        score = seen.abs() / lengths.clamp_min(1e-300)
        score = score.masked_fill(~doubt | (effect == 0), 0)
        best = score.flatten().topk(min(most, score.numel()))
        chosen = best.indices[best.values > 0]
        return torch.stack(torch.unravel_index(chosen, score.shape), 1)

    def missing(
        self, layer: Convolution, places: Int[Tensor, "K 4"], effect: Float[Tensor, "K"]
    ) -> Float[Tensor, "K"]:
        """How much of each of these slopes is missing: 1 if it is 0 and should be `effect`.

        Least squares over them and the input together, to first order: a missing slope at
        position p of channel o adds `effect` times the patch at p to the rows of o.

        Args:
            layer: whose output has the slopes.
            places: image, channel, row and column.
            effect: the slopes.
        """
        first, size = self.blocks[layer.weight]
        count = layer.kernel[0] * layer.kernel[1]
        image, channel, y, x = places.T
        height, width = layer.output_size(self.fed.shape[-2:])
        seen = layer.patches(self.fed)[(image * height + y) * width + x]  # (K, I k)
        own = seen.view(len(places), -1, count).transpose(1, 2) * (effect / size)[:, None, None]
        rows = first + channel[:, None] * count + torch.arange(count, device=channel.device)
        wanted = (own * self.missed[rows]).flatten(1).sum(1)
        inner = torch.einsum("kuq,kui->kqi", self.span[rows], own).flatten(1)
        alike = (channel[:, None] == channel).to(own.dtype)
        gram = alike * (own.flatten(1) @ own.flatten(1).T) - inner @ inner.T
        sizes = gram.diagonal().clamp_min(1e-300).sqrt()
        alike = gram / sizes / sizes[:, None]
        alike.diagonal().add_(1e-6)  # two places may have the same effect
        found: Tensor = torch.linalg.solve(alike, wanted / sizes) / sizes
        return found
