"""Class means: label counts from any part of an update, the head's or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, ModelError
from gifd.leakage.counts.estimate import LabelEstimate
from gifd.leakage.counts.estimators import LabelEstimator
from gifd.leaves import dead_leaves
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class ClassMeans(LabelEstimator):
    """Least squares of the whole update on the mean updates of random images of each class.

    The slope of the loss at the head's input, and so every gradient in front of it, depends on the
    label: `u` is near `sum_y c_y / B g_y`, g_y the update of random images that all have label y.
    With m the mean of all g_y, the shares are `1 / N + s`, s the least-squares coefficients of `u`
    on `g_y - m`, shifted to a sum of 0. It needs no head, and uses what no defence hides.

    It replays one update for each class and B of the images.

    Args:
        images: the number of random images (dead leaves) of each class, rounded up to whole
            batches. Of more than `MOST` in total fewer are used, at least two of each class.
        seed: of these images.

    Source: ours. AuxiliaryLeastSquares (Chen and Vikalo, ICML 2024) solves for the counts likewise,
    on the head's bias alone.
    """

    images: int = 16
    seed: int = 0

    SAMPLE: ClassVar[int] = 1 << 14
    """The most numbers of each tensor that are used."""
    MOST: ClassVar[int] = 1024
    """The most images of all classes together."""

    def __call__(self, observation: Observation) -> LabelEstimate:
        """Shares that sum to B.

        Raises:
            ModelError: what is shown of the update is zero, or does not depend on the labels.
        """
        ledger, model = observation.ledger, observation.model
        classes, batch = model.classes(ledger.image_shape), ledger.batch_size
        rng, like = torch.Generator().manual_seed(self.seed), next(iter(model.parameters.values()))
        rounds = -(-min(self.images, max(2, self.MOST // classes)) // batch)
        images = dead_leaves(rounds * batch, ledger.image_shape, rng)
        own = torch.split(images.to(like), batch)
        places = {
            name: torch.randperm(t.numel(), generator=rng)[: self.SAMPLE].to(t.device)
            for name, t in observation.update.items()
        }

        def row(update: Update) -> Float[Tensor, "K"]:
            gradient, protocol = observation.as_gradient(update), observation.protocol
            parts = []
            for name, tensor in gradient.items():
                mask = protocol.shown(name)
                shown = tensor if mask is None else tensor * mask
                scale = math.sqrt(tensor.numel() / len(places[name]))
                parts.append(shown.flatten()[places[name]].double().cpu() * scale)
            return torch.cat(parts)

        def mean(label: int) -> Float[Tensor, "K"]:
            labels = torch.full((batch,), label, device=model.device)
            with torch.no_grad():
                return torch.stack([row(observation.replay(x, labels)) for x in own]).mean(0)

        seen = row(observation.update)
        if not bool(seen.any()):
            raise ModelError(
                f"expected an update that shows labels, got zeros only: {GRANT_LABELS}"
            )
        means = torch.stack([mean(label) for label in range(classes)])  # (N, K)
        apart = means - means.mean(0)
        gram = apart @ apart.T
        if float(gram.trace()) <= _NOTHING * float(means.square().sum()):
            raise ModelError(
                f"expected an update that depends on the labels, got none: {GRANT_LABELS}"
            )
        slopes = torch.linalg.pinv(gram, rtol=_SMALLEST, hermitian=True) @ apart
        found = slopes @ seen
        return LabelEstimate.of(batch * (found - found.mean() + 1 / classes), batch)


_NOTHING = 1e-20
_SMALLEST = 1e-3
"""Eigenvalues below this share of the largest are noise of the random images."""
