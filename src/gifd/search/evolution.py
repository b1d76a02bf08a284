"""Evolution: generations of candidates, all of one generation evaluated at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gifd.search.evaluation import Evaluation
from gifd.search.population import Numbers, Population, Strategy
from gifd.search.step import Seen

WORST = 1e30
"""The objective reported for a candidate whose objective is not finite."""


def evolve(
    evaluation: Evaluation,
    rule: Population,
    x: Tensor,
    alive: Tensor,
    steps: int,
    *,
    seeds: Sequence[Sequence[int]],
) -> Iterator[Seen]:
    """Evaluate `steps` candidates of each search, a generation at once, and yield each one.

    Args:
        evaluation: of the phase.
        rule: makes the candidates.
        x: the start, (N, R, M).
        alive: active searches, (N, R).
        steps: candidates per search; the last generation may be cut short.
        seeds: one per search.
    """
    images, restarts, _ = x.shape
    means = x.double().cpu().numpy()
    going = (alive & x.isfinite().all(-1)).cpu()
    strategies: dict[tuple[int, int], Strategy] = {
        (n, r): rule.start(means[n, r], seeds[n][r])
        for n in range(images)
        for r in range(restarts)
        if bool(going[n, r])
    }
    for first in range(0, steps, rule.population):
        size = min(rule.population, steps - first)
        asked = {key: strategy.ask() for key, strategy in strategies.items()}
        candidates = _tensor(x, asked, size)  # (N, R, P, M)
        spread = alive[..., None].expand(-1, -1, size)  # (N, R, P)
        found = evaluation.values(candidates.flatten(1, 2), spread.flatten(1, 2))
        objective, distance = (
            value.reshape(images, restarts, size) for value in (found.objective, found.distance)
        )
        if size == rule.population:
            told = torch.where(objective.isfinite(), objective, WORST).double().cpu()
            for (n, r), strategy in strategies.items():
                strategy.tell(asked[n, r], told[n, r].tolist())
        for p in range(size):
            shown = torch.where(alive, distance[..., p], torch.nan)
            finite = alive & shown.isfinite()
            yield Seen(candidates[:, :, p], shown, finite, alive)
            alive = finite


def _tensor(x: Tensor, asked: dict[tuple[int, int], list[Numbers]], size: int) -> Tensor:
    """The candidates as (N, R, P, M); for a search without a strategy, its present state."""
    found = x[:, :, None].repeat(1, 1, size, 1)
    for (n, r), candidates in asked.items():
        found[n, r] = torch.from_numpy(np.stack(candidates[:size])).to(found)
    return found
