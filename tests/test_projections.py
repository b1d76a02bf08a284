"""Projections are feasible, idempotent and give the nearest point."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gifd.errors import InputError
from gifd.search import Chain, L1Ball, Projection, Sphere, project_l1

pytestmark = pytest.mark.numerical

seeds = st.integers(0, 10**6)
dtypes = st.sampled_from([torch.float32, torch.float64])
scales = st.sampled_from([1e-12, 1e-3, 1.0, 1e4, 1e15])
shares = st.sampled_from([1e-4, 0.01, 0.3, 0.9, 0.999999, 1.0, 1.5])
sizes = st.sampled_from([1, 2, 7, 300])
kinds = st.sampled_from(["normal", "heavy", "equal", "sparse", "ties"])


def vectors(seed: int, kind: str, rows: int, size: int, scale: float) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, size, generator=rng, dtype=torch.float64)
    if kind == "heavy":
        v = v**5
    elif kind == "equal":
        v = v.sign()
    elif kind == "sparse":
        v = v * (torch.rand(rows, size, generator=rng) < 0.1)
    elif kind == "ties":
        v = (2 * v).round()
    return v * scale


def sorted_projection(v: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Duchi et al., ICML 2008, Figure 1: sort, then find the threshold among the sorted."""
    size = np.abs(v)
    if size.sum() <= radius:
        return v
    falling = np.sort(size)[::-1]
    thresholds = (np.cumsum(falling) - radius) / np.arange(1, len(v) + 1)
    threshold = thresholds[np.nonzero(falling > thresholds)[0][-1]]
    projected: NDArray[np.float64] = np.sign(v) * np.maximum(size - threshold, 0)
    return projected


@given(seeds, kinds, sizes, scales, shares, dtypes)
def test_the_l1_projection_is_the_nearest_point(
    seed: int, kind: str, size: int, scale: float, share: float, dtype: torch.dtype
) -> None:
    v = vectors(seed, kind, 3, size, scale).to(dtype)
    lengths = v.double().abs().sum(1)
    radius = (share * lengths).clamp_min(1e-3 * scale)
    projected = project_l1(v, radius)
    slow = np.stack(
        [
            sorted_projection(row.double().numpy(), float(r))
            for row, r in zip(v, radius, strict=True)
        ]
    )
    precision = 4 * torch.finfo(dtype).eps
    assert projected.dtype == dtype
    assert np.allclose(
        projected.double().numpy(), slow, rtol=precision, atol=2e-6 * float(radius.max())
    )
    # feasible, and the second time nothing is left to do
    assert (projected.double().abs().sum(1) <= radius * (1 + 1e-6)).all()
    assert torch.equal(project_l1(projected, radius), projected)
    # on its own side of every axis, and never longer
    assert (projected * v >= 0).all()
    assert (projected.abs() <= v.abs()).all()


@pytest.mark.parametrize("radius", [1e-3, 1.0, 100.0])
def test_a_long_vector_comes_to_the_radius_exactly(radius: float) -> None:
    """In float32; the vector is 1e3 to 1e8 times as long as the radius."""
    v = 1 + torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0))
    left = project_l1(v, torch.tensor([radius], dtype=torch.float64))
    assert float(left.abs().sum(dtype=torch.float64)) == pytest.approx(radius, rel=1e-6)


@given(seeds, sizes, dtypes)
def test_what_is_inside_stays_the_very_tensor(seed: int, size: int, dtype: torch.dtype) -> None:
    v = vectors(seed, "normal", 2, size, 1.0).to(dtype)
    radius = v.double().abs().sum(1)
    assert project_l1(v, radius) is v
    half = torch.stack([radius[0], radius[1] / 2])
    mixed = project_l1(v, half)
    assert torch.equal(mixed[0], v[0])
    assert not torch.equal(mixed[1], v[1])


def entries(seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    entry = torch.randn(2, 3, 4, 5, generator=rng)
    return entry, entry + torch.randn(2, 3, 4, 5, generator=rng)


def lengths(x: Tensor) -> Tensor:
    return x.abs().sum((2, 3))


@given(seeds, st.floats(0.5, 50))
def test_the_ball_is_around_the_entry_for_each_sample(seed: int, radius: float) -> None:
    entry, value = entries(seed)
    ball = L1Ball(radius=radius)
    projected = ball(value, entry)
    wanted = torch.full((6,), radius, dtype=torch.float64)
    expected = entry + project_l1((value - entry).reshape(6, -1), wanted).reshape(entry.shape)
    assert torch.equal(projected, expected) or torch.equal(projected, value)
    assert (lengths(projected - entry) <= radius * (1 + 1e-5)).all()
    assert torch.allclose(ball(projected, entry), projected, atol=1e-6)
    shifted = ball(value + 3, entry + 3) - 3
    assert torch.allclose(shifted, projected, atol=1e-5)


@given(seeds, st.floats(0.05, 2))
def test_a_share_is_of_the_entrys_own_length(seed: int, share: float) -> None:
    entry, value = entries(seed)
    entry[0] *= 10
    projected = L1Ball(share=share)(value, entry)
    assert (lengths(projected - entry) <= share * lengths(entry) * (1 + 1e-5)).all()
    for r in range(2):
        for b in range(3):
            radius = float(share * lengths(entry)[r, b])
            alone = L1Ball(radius=radius)(value[r : r + 1, b : b + 1], entry[r : r + 1, b : b + 1])
            assert torch.allclose(alone[0, 0], projected[r, b], atol=1e-4)


def test_a_value_inside_the_ball_is_returned_unchanged() -> None:
    entry, value = entries(0)
    assert L1Ball(radius=1000.0)(value, entry) is value


@given(seeds, scales, dtypes)
def test_the_sphere_keeps_direction_and_takes_the_entrys_norm(
    seed: int, scale: float, dtype: torch.dtype
) -> None:
    entry, value = (tensor.to(dtype) * scale for tensor in entries(seed))
    projected = Sphere()(value, entry)
    norms = projected.double().flatten(2).norm(dim=2)
    assert torch.allclose(norms, entry.double().flatten(2).norm(dim=2), rtol=1e-5, atol=0)
    cosine = torch.nn.functional.cosine_similarity(
        projected.double().flatten(2) / scale, value.double().flatten(2) / scale, dim=2
    )
    assert torch.allclose(cosine, torch.ones_like(cosine))
    assert torch.allclose(Sphere()(projected, entry), projected, rtol=1e-5, atol=0)


@given(seeds)
def test_each_entry_of_the_first_axis_can_have_a_sphere_of_its_own(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    entry, value = torch.randn(2, 2, 3, 4, 5, generator=rng, dtype=torch.float64)
    projected = Sphere(each=True)(value, entry)
    assert torch.allclose(projected.norm(dim=3), entry.norm(dim=3))
    for style in range(4):
        alone = Sphere()(value[:, :, style], entry[:, :, style])
        assert torch.allclose(projected[:, :, style], alone)


@given(seeds)
def test_a_chain_projects_one_after_the_other(seed: int) -> None:
    entry, value = entries(seed)
    ball = L1Ball(radius=0.5)
    projected = Chain((Sphere(), ball))(value, entry)
    assert torch.equal(projected, ball(Sphere()(value, entry), entry))
    assert (lengths(projected - entry) <= 0.5 * (1 + 1e-5)).all()


def test_the_sphere_has_an_answer_for_zero() -> None:
    entry, value = entries(0)
    value[0, 1] = 0
    projected = Sphere()(value, entry)
    assert torch.equal(projected[0, 1], entry[0, 1])
    assert not torch.equal(projected[0, 0], entry[0, 0])


@pytest.mark.parametrize("projection", [Sphere(), L1Ball(radius=1.0)], ids=repr)
def test_a_broken_sample_stays_broken_and_alone(projection: Projection) -> None:
    entry, value = entries(0)
    whole = projection(value, entry)
    value[0, 1, 0] = torch.nan
    projected = projection(value, entry)
    assert projected[0, 1].isnan().any()
    projected[0, 1] = whole[0, 1]
    assert torch.equal(projected, whole)


@pytest.mark.parametrize(
    ("radius", "share"), [(None, None), (1.0, 1.0), (0.0, None), (-1.0, None), (None, 0.0)]
)
def test_a_ball_that_is_none(radius: float | None, share: float | None) -> None:
    with pytest.raises(InputError, match="one positive radius or share"):
        L1Ball(radius=radius, share=share)
