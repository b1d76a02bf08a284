"""Evaluation: objectives and gradients of all searches, one by one or in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.func import grad_and_value, vmap

from gifd.attacker.observation import Observation
from gifd.federation.protocols import Protocol
from gifd.priors.generator import State
from gifd.search.objective import Objective, Part, Target
from gifd.search.variables import Layout


class Evaluated(NamedTuple):
    """The results of one evaluation of every search; NaN for searches that were left out.

    Args:
        gradient: (N, R, M) of the objective; None if not requested.
        objective, distance: (N, R).
    """

    gradient: Tensor | None
    objective: Tensor
    distance: Tensor


@final
class Evaluation:
    """The objectives of N images with R restarts each, as functions of the variables.

    Args:
        objectives: one per image. With `batched` those of one protocol are evaluated together.
        layout: of the variables.
        carried: (N, R, ...) the rest of the states.
        labels: (N, R, B).
        batched: one vectorised call instead of one search after the other.
        together: the stacked targets, if all are of one protocol (`stacked`).
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        layout: Layout,
        carried: State,
        labels: Shaped[Tensor, "N R B *T"],
        batched: bool,
        together: Target | None,
    ) -> None:
        self._objectives, self._layout, self._batched = objectives, layout, batched
        self._carried, self._labels = carried, labels
        self._targets = [objective.comparison.target for objective in objectives]
        self._stacked = together

    def gradients(
        self,
        x: Float[Tensor, "N R M"],
        alive: Bool[Tensor, "N R"],
        groups: Sequence[Tensor | None],
    ) -> Evaluated:
        """Objectives and their gradients; with `batched` also those of dropped searches."""
        with torch.enable_grad():
            if self._batched:
                return self._vectorised(x, groups, slopes=True)
            return self._one_by_one(x, alive, groups, slopes=True)

    def values(self, x: Float[Tensor, "N S M"], alive: Bool[Tensor, "N S"]) -> Evaluated:
        """Objectives without gradients (a third of the work), for S searches per image.

        S is a multiple of R: each restart's carried state and labels are repeated S / R times.
        """
        groups = [None] * len(x)
        with torch.no_grad():
            if self._batched:
                return self._vectorised(x, groups, slopes=False)
            return self._one_by_one(x, alive, groups, slopes=False)

    # -- inside ------------------------------------------------------------------------

    def _vectorised(self, x: Tensor, groups: Sequence[Tensor | None], *, slopes: bool) -> Evaluated:
        carried, labels = self._spread(x.shape[1])
        if self._stacked is not None:
            objective = self._objectives[0]
            group = None if groups[0] is None else torch.stack([_given(each) for each in groups])
            searches = _vectorised(
                lambda *each: self._each(objective, slopes, *each), (0, 0, 0, None, None)
            )
            in_dims = (0, 0, 0, 0, None if group is None else 0)
            found = _vectorised(searches, in_dims)(x, carried, labels, self._stacked, group)
            return Evaluated(found[0] if slopes else None, found[1], found[2])
        rows = []
        for n, objective in enumerate(self._objectives):
            searches = _vectorised(
                lambda *each, own=objective: self._each(own, slopes, *each), (0, 0, 0, None, None)
            )
            own = {name: tensor[n] for name, tensor in carried.items()}
            rows.append(searches(x[n], own, labels[n], self._targets[n], groups[n]))
        gradient, values, distances = (torch.stack(part) for part in zip(*rows, strict=True))
        return Evaluated(gradient if slopes else None, values, distances)

    def _each(
        self,
        objective: Objective,
        slopes: bool,
        x: Tensor,
        carried: State,
        known: Tensor,
        target: Target,
        group: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One search within a vectorised call."""

        def value(x: Tensor) -> tuple[Tensor, Tensor]:
            return objective({**carried, **self._layout.unpack(x)}, known, target, group)

        if not slopes:
            found, distance = value(x)
            return x.new_zeros(()), found, distance
        gradient, (found, distance) = grad_and_value(value, has_aux=True)(x)
        return gradient, found, distance

    def _one_by_one(
        self, x: Tensor, alive: Tensor, groups: Sequence[Tensor | None], *, slopes: bool
    ) -> Evaluated:
        """The same by plain autograd, without vmap; 10 to 25 % faster on CPUs."""
        gradient = torch.zeros_like(x) if slopes else None
        found: dict[tuple[int, int], Tensor] = {}  # objective and distance
        carried, labels = self._spread(x.shape[1])
        for n, r in alive.nonzero().tolist():
            leaf = x[n, r].detach().requires_grad_(slopes)
            own = {name: tensor[n, r] for name, tensor in carried.items()}
            state = {**own, **self._layout.unpack(leaf)}
            value, distance = self._objectives[n](state, labels[n, r], self._targets[n], groups[n])
            found[n, r] = torch.stack([value.detach(), distance.detach()])
            if gradient is not None and value.requires_grad:
                (gradient[n, r],) = torch.autograd.grad(value, leaf, materialize_grads=True)
        values = next(iter(found.values()), x).new_full((2, *x.shape[:2]), torch.nan)
        for (n, r), pair in found.items():
            values[:, n, r] = pair
        return Evaluated(gradient, values[0], values[1])

    def _spread(self, searches: int) -> tuple[dict[str, Tensor], Tensor]:
        """Carried state and labels for this many searches per image."""
        times = searches // self._labels.shape[1]
        if times == 1:
            return dict(self._carried), self._labels
        carried = {n: t.repeat_interleave(times, 1) for n, t in self._carried.items()}
        return carried, self._labels.repeat_interleave(times, 1)


def _vectorised(
    function: Callable[..., Any], in_dims: tuple[int | None, ...]
) -> Callable[..., Any]:
    """`vmap`, in which a random layer of the victim draws for each search, as one by one."""
    found: Callable[..., Any] = vmap(function, in_dims, randomness="different")
    return found


def stacked(observations: Sequence[Observation], targets: Sequence[Target]) -> Target | None:
    """The targets of N images as one, with N in front of every tensor; None: of two protocols."""
    protocols = [observation.protocol for observation in observations]
    if not all(_equal(protocol, protocols[0]) for protocol in protocols[1:]):
        return None
    parts = tuple(
        Part(
            {name: torch.stack([part.tensors[name] for part in same]) for name in same[0].tensors},
            torch.stack([part.squares for part in same]),
        )
        for same in zip(*(target.parts for target in targets), strict=True)
    )
    statistics = tuple(
        (torch.stack([mean for mean, _ in same]), torch.stack([var for _, var in same]))
        for same in zip(*(target.statistics for target in targets), strict=True)
    )
    return Target(parts, statistics)


def _equal(one: Protocol, other: Protocol) -> bool:
    try:
        return one == other
    except RuntimeError:  # their settings contain tensors, which `==` cannot compare
        return False


def _given(group: Tensor | None) -> Tensor:
    assert group is not None  # all images update their means at the same steps
    return group
