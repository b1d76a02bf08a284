"""The step: a pure function that advances all searches of all images at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gifd.search.choice import chosen
from gifd.search.evaluation import Evaluated, Evaluation
from gifd.search.optimizers import Memory, Optimizer

Groups = Sequence[Tensor | None]


class Moving(NamedTuple):
    """The state of a step: variables (N, R, M), the optimiser's memory, active searches (N, R)."""

    x: Tensor
    memory: Memory
    alive: Tensor


class Seen(NamedTuple):
    """The results of an evaluation: iterates (N, R, M), distances (N, R), masks (N, R).

    `evaluated` are the searches that were active before it, `finite` those still active after
    it. The distance of a dropped search is NaN.
    """

    x: Tensor
    distance: Tensor
    finite: Tensor
    evaluated: Tensor


def step(
    moving: Moving,
    evaluate: Callable[[Tensor, Tensor], Evaluated],
    optimizer: Optimizer,
    limit: Callable[[Tensor], Tensor],
    noise: Tensor | None,
) -> tuple[Moving, Seen]:
    """Evaluate, move along the gradient, project; searches that are not finite stay in place.

    On an accelerator nothing is read back to the host, and no shape depends on a value.

    Args:
        moving: the state of the searches.
        evaluate: (variables, active searches) -> objectives, distances and gradients.
        optimizer: the update rule.
        limit: projects variables onto what the phase allows.
        noise: standard normal, shaped like the variables, for a noisy optimiser.
    """
    x, memory, alive = moving
    gradient, objective, distance = evaluate(x, alive)
    assert gradient is not None
    finite = alive & distance.isfinite() & gradient.isfinite().all(-1)
    seen = Seen(x, chosen(alive, distance, torch.nan), finite, alive)
    gradient, objective = chosen(finite, gradient, 0.0), chosen(finite, objective, 0.0)
    memory, moved = optimizer.step(memory, x, gradient, objective, noise)
    return Moving(chosen(finite, limit(moved), x), memory, finite), seen


def descend(
    evaluation: Evaluation,
    optimizer: Optimizer,
    x: Tensor,
    alive: Tensor,
    steps: int,
    *,
    limit: Callable[[Tensor], Tensor],
    normal: Callable[[], Tensor],
    confer: Callable[[int, Tensor, Tensor], Groups],
) -> Iterator[Seen]:
    """Take `steps` steps and yield the results of each.

    Args:
        evaluation: of the phase.
        optimizer: the update rule.
        x: the start, (N, R, M).
        alive: active searches, (N, R).
        steps: number of steps.
        limit: see `step`.
        normal: draws noise for a noisy optimiser.
        confer: (step, variables, active searches) -> each image's mean over restarts, if any.
    """
    moving = Moving(x, optimizer.init(x, steps), alive)
    for number in range(steps):
        groups = confer(number, moving.x, moving.alive)

        def evaluate(x: Tensor, alive: Tensor, groups: Groups = groups) -> Evaluated:
            return evaluation.gradients(x, alive, groups)

        noise = normal() if optimizer.noisy else None
        moving, seen = step(moving, evaluate, optimizer, limit, noise)
        yield seen
