"""Smoothed curvature leaves values and first derivatives alone and replaces the second."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from gifd.federation.protocols import FedSGD
from gifd.model import Model
from gifd.search import smoothed_curvature

pytestmark = pytest.mark.numerical

Activation = Callable[[Tensor], Tensor]


def statement(function: Callable[[Tensor], object]) -> Activation:
    """An in-place activation whose result is discarded."""

    def run(a: Tensor) -> Tensor:
        b = a.clone()
        function(b)
        return b

    return run


# name -> (the activation, its kinks as pairs (where, jump of the derivative))
ACTIVATIONS: dict[str, tuple[Activation, list[tuple[float, float]]]] = {
    "nn.ReLU": (nn.ReLU(), [(0, 1)]),
    "nn.ReLU in place": (lambda a: nn.ReLU(inplace=True)(a.clone()), [(0, 1)]),
    "F.relu": (F.relu, [(0, 1)]),
    "F.relu in place": (statement(lambda a: F.relu(a, inplace=True)), [(0, 1)]),
    "torch.relu": (torch.relu, [(0, 1)]),
    "torch.relu_": (statement(torch.relu_), [(0, 1)]),
    "Tensor.relu": (lambda a: a.relu(), [(0, 1)]),
    "Tensor.relu_": (statement(lambda a: a.relu_()), [(0, 1)]),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2), [(0, 0.8)]),
    "F.leaky_relu": (F.leaky_relu, [(0, 0.99)]),
    "F.leaky_relu by name": (lambda a: F.leaky_relu(a, negative_slope=0.3), [(0, 0.7)]),
    "F.leaky_relu in place": (statement(lambda a: F.leaky_relu(a, 0.3, True)), [(0, 0.7)]),
    "nn.PReLU": (nn.PReLU(init=0.2).double(), [(0, 0.8)]),
    "F.prelu": (lambda a: F.prelu(a, torch.tensor([0.3]).double()), [(0, 0.7)]),
    "torch.prelu": (lambda a: torch.prelu(a, torch.tensor([0.3]).double()), [(0, 0.7)]),
    "nn.ReLU6": (nn.ReLU6(), [(0, 1), (6, -1)]),
    "F.relu6": (F.relu6, [(0, 1), (6, -1)]),
    "F.relu6 in place": (statement(lambda a: F.relu6(a, inplace=True)), [(0, 1), (6, -1)]),
    "F.hardtanh": (F.hardtanh, [(-1, 1), (1, -1)]),
    "nn.Hardtanh": (nn.Hardtanh(-2.0, 3.0), [(-2, 1), (3, -1)]),
}
every = pytest.mark.parametrize(
    ("activation", "kinks"), ACTIVATIONS.values(), ids=list(ACTIVATIONS)
)


def inputs() -> Tensor:
    return torch.linspace(-5, 9, 101, dtype=torch.float64) + 0.013


def kernel(a: Tensor, h: float) -> Tensor:
    s = 1 / (1 + torch.exp(-a / h))
    return s * (1 - s) / h


@every
@pytest.mark.parametrize("width", [0.5, 4.0])
def test_value_and_first_derivative_are_exact(
    activation: Activation, kinks: list[tuple[float, float]], width: float
) -> None:
    a = inputs()
    slope = grad(lambda a: activation(a).sum())
    with smoothed_curvature(width):
        value, derivative = activation(a), slope(a)
    assert torch.allclose(value, activation(a), atol=1e-14)
    assert torch.allclose(derivative, slope(a), atol=1e-14)
    assert len(set(derivative.tolist())) == 2


@every
@pytest.mark.parametrize("width", [0.5, 4.0])
def test_the_second_derivative_is_the_kernel_at_each_kink(
    activation: Activation, kinks: list[tuple[float, float]], width: float
) -> None:
    a = inputs()

    def curvature() -> Tensor:
        x = a.clone().requires_grad_()
        (slope,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(a)
        (second,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
        return second

    h = width * float(a.std(correction=0))
    expected = sum((jump * kernel(a - at, h) for at, jump in kinks), torch.zeros_like(a))
    with smoothed_curvature(width):
        smoothed = curvature()
    assert torch.allclose(smoothed, expected, rtol=1e-9)
    assert curvature().abs().max() == 0


@pytest.mark.parametrize("value", [-0.3, 0.0, 0.7])
def test_a_layer_whose_inputs_are_all_alike_does_not_bend(value: float) -> None:
    second = grad(lambda a: grad(lambda a: F.relu(a).sum())(a).sum())
    with smoothed_curvature(0.5):
        assert second(torch.full((8,), value, dtype=torch.float64)).tolist() == [0.0] * 8


@pytest.mark.parametrize("activation", [case[0] for case in ACTIVATIONS.values()], ids=ACTIVATIONS)
def test_width_zero_is_plain_autograd(activation: Activation) -> None:
    second = grad(lambda a: grad(lambda a: activation(a).sum())(a).sum())
    with smoothed_curvature(0.0):
        assert second(inputs()).abs().max() == 0
    with smoothed_curvature(1.0):
        assert second(inputs()).abs().max() > 0.01


def test_a_prelu_has_a_slope_for_each_channel() -> None:
    a = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slopes = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    second = grad(lambda a: grad(lambda a: F.prelu(a, slopes).sum())(a).sum())
    with smoothed_curvature(0.5):
        assert torch.allclose(F.prelu(a, slopes), torch.where(a > 0, a, slopes.view(3, 1, 1) * a))
        smoothed = second(a)
    expected = (1 - slopes.view(3, 1, 1)) * kernel(a, 0.5 * float(a.std(correction=0)))
    assert torch.allclose(smoothed, expected)


def test_each_sample_of_a_vmap_has_its_own_width() -> None:
    a = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = a * torch.tensor([[0.1], [1.0], [10.0]], dtype=torch.float64)
    second = grad(lambda a: grad(lambda a: F.relu(a).sum())(a).sum())
    with smoothed_curvature(2.0):
        batched, one_by_one = vmap(second)(a), torch.stack([second(row) for row in a])
    expected = torch.stack([kernel(row, 2 * float(row.std(correction=0))) for row in a])
    assert torch.allclose(batched, one_by_one)
    assert torch.allclose(batched, expected)


def victim(inplace: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.ReLU6(inplace=inplace),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_a_replay_is_the_same_and_its_gradient_another(
    inplace: bool,
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
    pictures: Callable[..., Tensor],
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = victim(inplace)
    model, images, labels = Model(module=module), pictures(0), torch.tensor([1])

    def power(x: Tensor) -> Tensor:
        update = FedSGD()(model, model.parameters, model.buffers, x, labels)
        return update.squares().sum()

    with untouched(module):
        exact, exact_gradient = power(images), grad(power)(images)
        with smoothed_curvature(1.0):
            value, gradient = power(images), grad(power)(images)
            batched = vmap(grad(power))(torch.stack([images, images.flip(-1)]))
    assert torch.allclose(value, exact)
    assert not torch.allclose(gradient, exact_gradient, rtol=0.05)
    assert torch.allclose(batched[0], gradient, rtol=1e-4, atol=1e-6)


def test_the_context_ends_also_on_an_error() -> None:
    second = grad(lambda a: grad(lambda a: F.relu(a).sum())(a).sum())
    with pytest.raises(KeyError), smoothed_curvature(1.0):
        raise KeyError
    assert second(inputs()).abs().max() == 0


def test_where_many_relus_flip_it_is_nearer_to_the_truth_than_autograd() -> None:
    """f(x) = mean_i relu(w_i x + b_i) curves as its units switch on one after the other.

    For standard normal w and b, f''(x) = (1 + x^2)^(-3/2) / sqrt(2 pi); autograd says 0.
    """
    rng = torch.Generator().manual_seed(0)
    w, b = torch.randn(2, 200_000, generator=rng, dtype=torch.float64)

    def slope(x: Tensor) -> Tensor:
        derivative: Tensor = grad(lambda x: F.relu(w * x + b).mean())(x)
        return derivative

    for at in (-1.0, 0.0, 0.7):
        truth = (1 + at**2) ** -1.5 / math.sqrt(2 * math.pi)
        x, step = torch.tensor(at, dtype=torch.float64), 0.1
        differences = float(slope(x + step) - slope(x - step)) / (2 * step)
        with smoothed_curvature(0.15):
            smoothed = float(grad(slope)(x))
        assert differences == pytest.approx(truth, rel=0.1)
        assert smoothed == pytest.approx(truth, rel=0.1)
        assert grad(slope)(x) == 0
