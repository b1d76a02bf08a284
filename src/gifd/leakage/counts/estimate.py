"""An estimate of a batch's labels: shares, whole counts, and confidence."""

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
    """The result of an estimator.

    Args:
        shares: (N,) the estimated counts before rounding, in float64.
        counts: (N,) whole numbers that sum to the batch size.
        confidence: (N,) in [0, 1]: 1 if the share equals the count, 0 if another count is as
            near.
        certain: (N,) minimum counts, independent of the shares.
    """

    shares: Float[Tensor, "N"]
    counts: Int[Tensor, "N"]
    confidence: Float[Tensor, "N"]
    certain: Int[Tensor, "N"]

    @property
    def labels(self) -> Int[Tensor, "B"]:
        """(B,) the labels in ascending order, each repeated by its count."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)

    def hypotheses(self, most: int) -> Int[Tensor, "M B"]:
        """`labels` and up to `most - 1` alternatives that are almost as likely.

        Moving one label from class i to class j adds `2 (1 + d_i - d_j)`, `d = shares - counts`,
        to the squared deviation of the counts from the shares: 0 for a tie, 2 if both shares are
        whole numbers. Moves that add less than 1, alone or in sequence, are hypotheses. The
        likeliest come first. A label that changes keeps its position.
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
        """Round shares to counts: each label goes to the class with the largest deficit.

        Args:
            shares: (N,) the estimated counts.
            batch: the sum of the counts.
            present: (N,) whether a class is certainly in the batch; it then counts at least once.
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
