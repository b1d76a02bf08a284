"""Nulls: matching distances of images that have nothing to do with the private ones."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.audit.stand_ins import stand_ins
from gifd.search import Comparison, Measure
from gifd.search.smoothing import smoothed_replay


def null_distances(
    observation: Observation,
    labels: Shaped[Tensor, "B *T"],
    measure: Measure,
    *,
    count: int = 8,
    seed: int = 0,
) -> tuple[float, ...]:
    """The distances of stand-in images to the observed update, ascending.

    A reconstruction whose distance is not below all of them explains nothing of the update.

    Args:
        observation: what the attacker has.
        labels: of the private images.
        measure: that of the reconstruction's distance.
        count: number of stand-in batches.
        seed: of the stand-ins.
    """
    compare, rng = Comparison(observation), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        images = stand_ins(observation.ledger.batch_size, observation.ledger.image_shape, rng)
        with torch.no_grad(), smoothed_replay(measure.smoothing):
            replayed = observation.replay(images.to(observation.model.device), labels)
            found.append(float(compare(measure.distance, replayed)[1]))
    return tuple(sorted(found))
