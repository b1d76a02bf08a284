"""Label mapping: finds the class of a conditional prior for a private image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gifd.errors import InputError
from gifd.search.phase import Phase

Classifier = Callable[[Float[Tensor, "B C H W"]], Int[Tensor, "B"]]


@final
@dataclass(frozen=True, kw_only=True)
class LabelMapping:
    """A coarse pass with the private label, whose image is classified for the fine pass.

    If the classes of a conditional prior are not the victim's, the private label is wrong for
    the prior. So a coarse pass runs a tenth of every phase's steps, its image is classified among
    the *prior's* classes, and the attack proper uses that class for the prior. The replay keeps
    the private label throughout.

    Args:
        classify: images in [0, 1] -> class indices of the prior (`gifd.priors.Remapper`).
        name: name of the classifier, for the record.
        coarse: share of every phase's steps in the coarse pass.

    Raises:
        InputError: a share outside (0, 1].

    Source: Fang et al., Enhancing Gradient Inversion Attacks in Federated Learning via
    Hierarchical Feature Optimization, arXiv:2604.00955 (100 of 1,000 iterations a phase).
    """

    classify: Classifier = field(repr=False)
    name: str
    coarse: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.coarse <= 1:
            raise InputError(f"expected a coarse share in (0, 1], got {self.coarse}")

    def phases(self, fine: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """The coarse pass of these phases."""
        return tuple(
            replace(
                phase.at_cost(max(1, round(phase.cost * self.coarse))), name=f"coarse {phase.name}"
            )
            for phase in fine
        )

    def begin(self, labels: Int[Tensor, "R B"], classes: int, seed: int) -> Int[Tensor, "R B"]:
        """The prior's labels in the coarse pass: the private ones if it has them, else random."""
        drawn = torch.randint(classes, labels.shape, generator=torch.Generator().manual_seed(seed))
        known = labels.cpu()
        return torch.where(known < classes, known, drawn)

    def mapped(self, images: Float[Tensor, "B C H W"], asked: Int[Tensor, "R B"]) -> Tensor:
        """The classes (R, B) that these images look like, the same for every restart.

        Raises:
            InputError: the classifier does not answer with a class index an image.
        """
        found = self.classify(images)
        whole = isinstance(found, Tensor) and not found.is_floating_point()
        if not whole or found.shape != (len(images),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"expected {len(images)} class indices from the classifier '{self.name}', got {got}"
            )
        return found.to(asked.device).expand_as(asked)
