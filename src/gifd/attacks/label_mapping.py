"""Label mapping: the class of a conditional prior that a private image looks like."""

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

    A conditional prior whose classes are not the private ones is asked for the wrong things by
    the private label. So every phase runs a tenth of its steps first, the image found is
    classified among the *prior's* classes, and the attack proper is conditioned on that. The
    replay keeps the private label throughout.

    Args:
        classify: images in [0, 1] -> class indices of the prior (`gifd.priors.Remapper`).
        name: of the classifier, for the record.
        coarse: the coarse pass's share of every phase's steps.

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
        """The prior's labels of the coarse pass: the private ones where it has such, else drawn."""
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
