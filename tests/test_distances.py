"""Distances, regularisers, schedules and Adam, each against its formula written out."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gifd.errors import InputError
from gifd.search import (
    Adam,
    Candidate,
    Constant,
    Cosine,
    Distance,
    ImageNorm,
    LayerCosine,
    PartialMatching,
    Schedule,
    Squared,
    StepDecay,
    TotalVariation,
    WarmupCosine,
)
from gifd.updates import Update

pytestmark = pytest.mark.numerical

seeds = st.integers(0, 10**6)
positive = st.floats(1e-3, 1e3)
DISTANCES: list[Distance] = [
    Cosine(),
    Cosine(norm=0.5),
    Squared(),
    Squared(mean=True),
    LayerCosine(),
    LayerCosine(norm=0.5),
]
SHAPES = {"conv": (4, 3, 2, 2), "bias": (4,), "head": (2, 4)}


def draw(seed: int) -> Update:
    rng = torch.Generator().manual_seed(seed)
    return Update(
        {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in SHAPES.items()}
    )


def flat(tensors: Sequence[Tensor]) -> list[float]:
    return [float(number) for tensor in tensors for number in tensor.flatten()]


def cosine(u: list[float], v: list[float]) -> float:
    product = sum(a * b for a, b in zip(u, v, strict=True))
    return product / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))


@given(seeds)
def test_distances_are_their_formulas(seed: int) -> None:
    u, v = draw(seed), draw(seed + 1)
    long_u, long_v = flat(u.tensors), flat(v.tensors)
    pairs = [(flat([u[name]]), flat([v[name]])) for name in u]
    apart = sum((a - b) ** 2 for a, b in zip(long_u, long_v, strict=True))
    layers = sum(1 - cosine(a, b) for a, b in pairs) / len(pairs)
    norms = sum(math.log(math.hypot(*a) / math.hypot(*b)) ** 2 for a, b in pairs) / len(pairs)
    assert float(Cosine()(u, v)) == pytest.approx(1 - cosine(long_u, long_v))
    length = math.log(math.hypot(*long_u) / math.hypot(*long_v)) ** 2
    assert float(Cosine(norm=0.7)(u, v)) == pytest.approx(1 - cosine(long_u, long_v) + 0.7 * length)
    assert float(Squared()(u, v)) == pytest.approx(apart)
    assert float(Squared(mean=True)(u, v)) == pytest.approx(apart / len(pairs))
    assert float(LayerCosine()(u, v)) == pytest.approx(layers)
    assert float(LayerCosine(norm=0.5)(u, v)) == pytest.approx(layers + 0.5 * norms)


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_there_is_no_distance_at_the_truth_and_no_pull_away(distance: Distance) -> None:
    truth = draw(0)
    assert float(distance(truth, truth)) == pytest.approx(0, abs=1e-12)
    at = truth.map(lambda tensor: tensor.clone().requires_grad_())
    gradients = torch.autograd.grad(distance(at, truth), at.tensors)
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-9
    assert float(distance(draw(1), truth)) > 0.1


@given(seeds, positive)
def test_the_cosines_do_not_hear_the_scale(seed: int, factor: float) -> None:
    u, v = draw(seed), draw(seed + 1)
    for distance in (Cosine(), LayerCosine()):
        assert float(distance(u * factor, v)) == pytest.approx(float(distance(u, v)))
        assert float(distance(u, v * factor)) == pytest.approx(float(distance(u, v)))
    assert float(LayerCosine(norm=2.0)(v * factor, v)) == pytest.approx(
        2 * math.log(factor) ** 2, abs=1e-9
    )
    assert float(Squared()(u * factor, v * factor)) == pytest.approx(
        factor**2 * float(Squared()(u, v))
    )


@given(seeds, positive)
def test_layers_count_alike_whatever_their_length(seed: int, factor: float) -> None:
    u, v = draw(seed), draw(seed + 1)
    longer = Update({**u, "head": u["head"] * factor})
    assert float(LayerCosine()(longer, v)) == pytest.approx(float(LayerCosine()(u, v)))


@given(seeds)
def test_the_cosine_ends_at_two(seed: int) -> None:
    assert float(Cosine()(-draw(seed), draw(seed))) == pytest.approx(2)
    assert float(LayerCosine()(-draw(seed), draw(seed))) == pytest.approx(2)


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_a_zero_update_has_a_finite_distance_and_gradient(distance: Distance) -> None:
    at = (draw(0) * 0.0).map(lambda tensor: tensor.clone().requires_grad_())
    value = distance(at, draw(1))
    gradients = torch.autograd.grad(value, at.tensors)
    assert math.isfinite(value.item())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


# -- regularisers ----------------------------------------------------------------------


@given(seeds, st.integers(1, 2), st.integers(2, 5), st.integers(2, 5), st.floats(0.01, 10))
def test_regularizers_are_their_formulas(
    seed: int, batch: int, height: int, width: int, weight: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, height, width, generator=rng, dtype=torch.float64)
    rows, columns = [], []
    for b in range(batch):
        for c in range(3):
            for i in range(height):
                for j in range(width):
                    if i + 1 < height:
                        rows.append(abs(float(x[b, c, i + 1, j] - x[b, c, i, j])))
                    if j + 1 < width:
                        columns.append(abs(float(x[b, c, i, j + 1] - x[b, c, i, j])))
    variation = sum(rows) / len(rows) + sum(columns) / len(columns)
    norm = math.sqrt(sum(number**2 for number in flat([x])))
    assert float(TotalVariation(weight=weight)(Candidate(inputs=x))) == pytest.approx(
        weight * variation
    )
    length = float(ImageNorm(weight=weight)(Candidate(inputs=x)))
    assert length == pytest.approx(weight * norm / (height * width))


def test_a_flat_image_has_no_variation() -> None:
    x = torch.full((1, 3, 4, 4), 0.7, requires_grad=True)
    value = TotalVariation(weight=3.0)(Candidate(inputs=x))
    assert value.item() == 0
    assert torch.autograd.grad(value, x)[0].abs().max() == 0


# -- schedules -------------------------------------------------------------------------

TIMES = [i / 1000 for i in range(1, 1001)]


def test_warmup_and_cosine() -> None:
    schedule = WarmupCosine()
    rates = [schedule(t) for t in TIMES]
    assert rates[0] == pytest.approx(0.02)
    assert rates[24] == pytest.approx(0.5)
    assert rates[49:250] == pytest.approx([1.0] * 201)
    assert schedule(0.625) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0)
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert all(a > b for a, b in pairwise(rates[250:]))


def test_step_decay() -> None:
    schedule = StepDecay()
    assert [schedule(t) for t in (0.001, 0.375, 0.376, 0.625, 0.626, 0.875, 0.876, 1.0)] == (
        pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    )
    assert StepDecay(milestones=(0.5,), factor=0.3)(1.0) == pytest.approx(0.3)


def test_constant() -> None:
    assert {Constant()(t) for t in TIMES} == {1.0}


# -- Adam ------------------------------------------------------------------------------


def by_torch(start: Tensor, gradient: Callable[[Tensor], Tensor], rates: Sequence[float]) -> Tensor:
    x = start.clone()
    adam = torch.optim.Adam([x])
    for rate in rates:
        adam.param_groups[0]["lr"] = rate
        x.grad = gradient(x)
        adam.step()
    return x


NOTHING = torch.zeros(1, 2)
"""The objectives, which Adam does not use."""


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("schedule", [Constant(), WarmupCosine(), StepDecay()], ids=repr)
def test_adam_is_that_of_pytorch(schedule: Schedule, signed: bool) -> None:
    start = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0))

    def gradient(x: Tensor) -> Tensor:
        slope = x**3 - 0.3
        return slope.sign() if signed else slope

    steps = 8
    rule, x = Adam(lr=0.2, schedule=schedule, signed=signed), start
    memory = rule.init(x, steps)
    for _ in range(steps):
        memory, x = rule.step(memory, x, x**3 - 0.3, NOTHING, None)
    rates = [0.2 * schedule((step + 1) / steps) for step in range(steps)]
    assert torch.allclose(x, by_torch(start, gradient, rates), atol=1e-7)
    assert not torch.allclose(x, start, atol=0.05)


def test_signed_adam_ignores_magnitudes() -> None:
    found = []
    for factor in (1e-3, 1e3):
        rule, x = Adam(lr=0.1, schedule=Constant(), signed=True), torch.ones(1, 1, 3)
        memory = rule.init(x, 3)
        for _ in range(3):
            uphill = factor * torch.tensor([[[1.0, -2.0, 0.0]]])
            memory, x = rule.step(memory, x, uphill, NOTHING[:, :1], None)
        found.append(x)
    assert torch.equal(*found)
    assert found[0].flatten().tolist() == pytest.approx([0.7, 1.3, 1.0])


def test_noise_is_added_at_the_rate_of_its_step() -> None:
    rule = Adam(lr=0.2, schedule=StepDecay(milestones=(0.5,)), noise=0.3)
    still, noise = torch.zeros(1, 2, 4), torch.randn(1, 2, 4, generator=torch.Generator())
    memory, x = rule.init(still, 2), still
    for rate in (0.2, 0.02):
        before = x
        memory, x = rule.step(memory, x, still, NOTHING, noise)
        assert torch.allclose(x - before, 0.3 * rate * noise)
    assert rule.noisy
    assert not Adam().noisy


@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan])
def test_a_learning_rate_must_be_positive(lr: float) -> None:
    with pytest.raises(InputError, match="expected lr > 0"):
        Adam(lr=lr)


@pytest.mark.parametrize("value", [*DISTANCES, Adam(), TotalVariation(weight=0.1)], ids=repr)
def test_a_component_is_its_configuration(value: object) -> None:
    names = (Adam, Cosine, LayerCosine, Squared, TotalVariation, WarmupCosine)
    assert eval(repr(value), {kind.__name__: kind for kind in names}) == value


@pytest.mark.parametrize(
    "distance", [Cosine(), Cosine(norm=1.0), LayerCosine(), PartialMatching(), Squared()], ids=repr
)
def test_a_tensor_of_zeros_on_both_sides_has_a_gradient(distance: Distance) -> None:
    """In float32 tiny squares underflow to zero, and a defence may hide whole tensors."""
    leaf = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    replayed = Update({"a": leaf, "b": 0 * leaf})
    observed = Update({"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.zeros(3)})
    (slope,) = torch.autograd.grad(distance(replayed, observed), leaf)
    assert bool(torch.isfinite(slope).all())
