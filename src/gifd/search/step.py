"""The step: a pure function that moves every search of every image at once."""

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
    """All that a step changes: variables (N, R, M), the optimiser's memory, who goes on (N, R)."""

    x: Tensor
    memory: Memory
    alive: Tensor


class Seen(NamedTuple):
    """What an evaluation showed: iterates (N, R, M), distances and whether they count (N, R).

    The distance of a search that fell before is NaN; `evaluated` are those that had not.
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
    """Evaluate, move along the gradient, project; what is not finite stays where it is.

    Nothing is read back to the host, and no shape depends on a value.

    Args:
        moving: where the searches are.
        evaluate: variables and who is alive -> objectives, distances and gradients.
        optimizer: the rule.
        limit: variables -> the nearest that the phase allows.
        noise: standard normal numbers like the variables, for a rule that asks for them.
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
    """So many steps, each told before the next.

    Args:
        evaluation: of the phase.
        optimizer: the rule.
        x: where it begins, (N, R, M).
        alive: who takes part, (N, R).
        steps: how many.
        limit: see `step`.
        normal: draws noise, where the rule asks for it.
        confer: step, variables and who is alive -> what the restarts of each image are drawn to.
    """
    moving = Moving(x, optimizer.init(x, steps), alive)
    for number in range(steps):
        groups = confer(number, moving.x, moving.alive)

        def evaluate(x: Tensor, alive: Tensor, groups: Groups = groups) -> Evaluated:
            return evaluation.gradients(x, alive, groups)

        noise = normal() if optimizer.noisy else None
        moving, seen = step(moving, evaluate, optimizer, limit, noise)
        yield seen
