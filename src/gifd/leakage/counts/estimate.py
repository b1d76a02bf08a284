"""What is said of a batch's labels: shares, whole counts, and how sure they are."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LabelEstimate:
    """What an estimator says of a batch.

    Args:
        shares: (N,) the estimated counts before rounding, in float64.
        counts: (N,) whole numbers that sum to the batch size.
        confidence: (N,) in [0, 1]: 1 where the share is a whole number and the count is that
            number, 0 where another count is as near.
        certain: (N,) how often a class is there whatever the shares say.
    """

    shares: Float[Tensor, "N"]
    counts: Int[Tensor, "N"]
    confidence: Float[Tensor, "N"]
    certain: Int[Tensor, "N"]

    @property
    def labels(self) -> Int[Tensor, "B"]:
        """(B,) the labels in ascending order, repeated as often as counted."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)

    def hypotheses(self, most: int) -> Int[Tensor, "M B"]:
        """`labels` and up to `most - 1` others that the shares support nearly as well.

        Giving one of class i's labels to class j adds `2 (1 + d_i - d_j)`, `d = shares - counts`,
        to the squared deviation of the counts from the shares: 0 for a draw, 2 where both are
        whole numbers. What adds less than 1 is a hypothesis, alone or after another; the
        likeliest come first. A label that changes keeps its place.
        """
        first = tuple(self.labels.tolist())
        heap, seen = [(0.0, first)], {tuple(sorted(first))}
        found: list[tuple[int, ...]] = []
        while heap and len(found) < most:
            cost, labels = heapq.heappop(heap)
            found.append(labels)
            counts = torch.bincount(torch.tensor(labels), minlength=len(self.counts))
            lacks = self.shares - counts
            added = 2 * (1 + lacks[:, None] - lacks[None, :])  # (N, N): from i to j
            added[counts <= self.certain] = torch.inf
            added.fill_diagonal_(torch.inf)
            for i, j in (added < 1).nonzero().tolist():
                place = len(labels) - 1 - labels[::-1].index(i)
                moved = (*labels[:place], j, *labels[place + 1 :])
                if tuple(sorted(moved)) not in seen:
                    seen.add(tuple(sorted(moved)))
                    heapq.heappush(heap, (cost + float(added[i, j]), moved))
        return torch.tensor(found)

    @classmethod
    def of(cls, shares: Tensor, batch: int, present: Tensor | None = None) -> LabelEstimate:
        """Round shares to counts: one label after the other goes to the class that lacks most.

        Args:
            shares: (N,) the estimated counts.
            batch: what the counts sum to.
            present: (N,) whether a class is in the batch for certain; it then counts at least once.
        """
        shares = shares.detach().cpu().double().nan_to_num(0.0)
        certain = torch.zeros(len(shares), dtype=torch.long)
        if present is not None and int(present.sum()) <= batch:
            certain += present
        counts = certain.clone()
        for _ in range(batch - int(counts.sum())):
            counts[int((shares - counts).argmax())] += 1
        confidence = (1 - 2 * (shares - counts).abs()).clamp(0, 1)
        return cls(shares=shares, counts=counts, confidence=confidence, certain=certain)
