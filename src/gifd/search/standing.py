"""Standing: the searches of several images between two phases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gifd.priors.generator import State
from gifd.search.spaces import Space


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """N images with R searches each.

    Args:
        space: the space of the states.
        state: tensors (N, R, B, ...).
        labels: labels of each search's replay.
        numbers: numbers of the searches, from 0, as at the beginning of the run.
        alive: the active searches; dropped ones are carried along unchanged.
        distance: by which they were ranked at the end of the last phase; zero before the first.
        notes: tensors (N, R, ...) that an initialiser left for a later one.
    """

    space: Space
    state: State
    labels: Shaped[Tensor, "N R B *T"]
    numbers: Int[Tensor, "N R"]
    alive: Bool[Tensor, "N R"]
    distance: Float[Tensor, "N R"]
    notes: State = field(default_factory=dict)

    def best_first(self) -> Int[Tensor, "N R"]:
        """The searches of each image by distance; dropped ones last."""
        ranked = torch.where(self.alive, self.distance, torch.inf)
        return torch.argsort(ranked, dim=1, stable=True)

    def chosen(self, places: Int[Tensor, "N K"]) -> Standing:
        """These searches of each image, in this order."""
        return Standing(
            space=self.space,
            state={name: _taken(tensor, places) for name, tensor in self.state.items()},
            labels=_taken(self.labels, places),
            numbers=_taken(self.numbers, places),
            alive=_taken(self.alive, places),
            distance=_taken(self.distance, places),
            notes={name: _taken(tensor, places) for name, tensor in self.notes.items()},
        )


def _taken(tensor: Tensor, places: Tensor) -> Tensor:
    """(N, R, ...) -> (N, K, ...)."""
    rows = torch.arange(len(places), device=places.device)[:, None]
    return tensor[rows, places]


def flat(state: State) -> dict[str, Tensor]:
    """(N, R, ...) -> (N * R, ...): the axis S of a space."""
    return {name: tensor.flatten(0, 1) for name, tensor in state.items()}


def apart(state: State, images: int) -> dict[str, Tensor]:
    """(N * R, ...) -> (N, R, ...)."""
    return {name: tensor.reshape(images, -1, *tensor.shape[1:]) for name, tensor in state.items()}
