"""Consensus: a mean that does not depend on the batch order or on other labellings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gifd.priors import State
from gifd.search.consensus import consensus

pytestmark = pytest.mark.numerical

SHAPE = (3, 4, 4)


def around(reference: Tensor, restarts: int, rng: torch.Generator) -> Tensor:
    """(R, B, C, H, W): the reference with a little noise in every restart."""
    return reference + 0.01 * torch.randn(restarts, *reference.shape, generator=rng)


def shuffled(labels: Tensor, rng: torch.Generator) -> Tensor:
    """A permutation of the batch that keeps the labels."""
    order = torch.arange(len(labels))
    for label in set(labels.tolist()):
        places = (labels == label).nonzero().flatten()
        order[places] = places[torch.randperm(len(places), generator=rng)]
    return order


def states(images: Tensor) -> list[State]:
    """One state per restart: a feature that belongs to its images."""
    return [{"x": each.flatten(1)[:, :5].double()} for each in images]


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    restarts=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_the_order_within_a_label_does_not_matter(
    labels: list[int], restarts: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    known = torch.tensor(labels)
    images = around(torch.rand(len(labels), *SHAPE, generator=rng), restarts, rng)
    mixed = torch.stack(
        [images[0], *(each[shuffled(known, rng)] for each in images[1:])],
    )
    rows = known.expand(restarts, -1)
    straight = consensus(states(images), images, rows)
    assert torch.allclose(straight["x"], images.flatten(2)[..., :5].double().mean(0))
    found = consensus(states(mixed), mixed, rows)
    assert torch.allclose(found["x"], straight["x"])


def test_images_never_change_places_with_those_of_another_label() -> None:
    one, other = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)
    images = torch.stack([torch.cat([one, other]), torch.cat([other, one])])
    apart = consensus(states(images), images, torch.tensor([[0, 1], [0, 1]]))
    assert torch.equal(apart["x"], torch.full((2, 5), 0.5).double())
    alike = consensus(states(images), images, torch.tensor([[1, 1], [1, 1]]))
    assert torch.equal(alike["x"], images[0].flatten(1)[:, :5].double())


def test_restarts_with_other_labels_have_no_say() -> None:
    images = torch.rand(3, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1], [0, 2], [0, 1]])
    found = consensus(states(images), images, labels)
    assert torch.allclose(found["x"], images[[0, 2]].flatten(2)[..., :5].double().mean(0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_what_is_no_real_number_is_the_best_restarts(dtype: torch.dtype) -> None:
    images = torch.rand(2, 1, *SHAPE)
    given = [{"label": torch.ones(1, dtype=dtype)}, {"label": torch.zeros(1, dtype=dtype)}]
    found = consensus(given, images, torch.zeros(2, 1, dtype=torch.long))
    assert torch.equal(found["label"], given[0]["label"])
