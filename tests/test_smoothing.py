"""The smoothed replay: a ReLU's mean over noise, in any victim, exact for small widths."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observe import observe
from gifd.federation.client import Client
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.model import Model
from gifd.search import Cosine
from gifd.search.curvature import smoothed_curvature
from gifd.search.smoothing import smoothed_replay
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical


@given(width=st.floats(0.05, 2.0), seed=st.integers(0, 2**16))
def test_a_relu_is_its_mean_over_noise_on_its_inputs(width: float, seed: int) -> None:
    a = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    h = width * a.std(correction=0)
    n = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * n.square())
    mean = ((a[:, None] + h * n).clamp_min(0) * density).sum(1) / density.sum()
    with smoothed_replay(width):
        assert torch.allclose(F.relu(a), mean, atol=1e-7)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional": F.relu,
    "method": lambda x: x.relu(),
    "in place": lambda x: torch.relu_(x.clone()),
    "module": nn.ReLU(),
    "module in place": lambda x: nn.ReLU(inplace=True)(x.clone()),
    "leaky": lambda x: F.leaky_relu(x, 0.0),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_relu_is_smoothed_alike(spelling: str) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    with smoothed_replay(0.3):
        assert torch.allclose(SPELLINGS[spelling](x), F.relu(x))
        assert not torch.equal(F.relu(x), x.clamp_min(0))
    assert torch.equal(SPELLINGS[spelling](x), x.clamp_min(0))


def test_the_narrower_it_is_the_nearer_to_the_exact_update() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(10).eval()
        image = torch.rand(1, 3, 32, 32)
    model = Model(module=module)
    upload, secret = Client(model=model).step(image, torch.tensor([3]))
    observation = observe(upload)
    away = []
    for width in (0.3, 0.03, 0.003, 0.0):
        with smoothed_replay(width):
            update = observation.replay(secret.images, secret.labels).detach()
        away.append(float((update - observation.update).squares().sum()))
    assert away[0] > away[1] > away[2] > away[3]
    assert away[3] < 1e-8


def test_its_slopes_are_those_of_the_value_whose_width_moves_too() -> None:
    def smooth(a: Tensor) -> Tensor:
        with smoothed_replay(0.5):
            return F.relu(a)

    a = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a.requires_grad_()
    assert torch.autograd.gradcheck(smooth, a)
    assert torch.autograd.gradgradcheck(smooth, a)


def test_inputs_that_are_all_alike_have_finite_slopes() -> None:
    for level in (0.0, 1.5, -2.0):
        a = torch.full((9,), level, requires_grad=True)
        with smoothed_replay(0.3):
            (slope,) = torch.autograd.grad(F.relu(a).square().sum(), a, create_graph=True)
        (bend,) = torch.autograd.grad(slope.square().sum(), a)
        assert bool(torch.isfinite(slope).all())
        assert bool(torch.isfinite(bend).all())


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=2, lr=0.1)], ids=repr)
@pytest.mark.parametrize("width", [0.0, 0.1, 0.3, 1.0])
def test_the_gradient_of_a_distance_is_that_of_finite_differences(
    width: float, protocol: Protocol, pictures: Callable[..., Tensor]
) -> None:
    """Of every replay whose derivative is its own: the exact one and the smoothed ones.

    Smoothed curvature is none of them: it leaves the value alone and replaces the slope.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(4, width=4).double().eval()
    client = Client(model=Model(module=module), protocol=protocol)
    observation = observe(client.step(pictures(3, side=16).double(), torch.tensor([3]))[0])
    images, label = pictures(4, side=16).double(), torch.tensor([3])

    def distance(x: Tensor) -> Tensor:
        with smoothed_replay(width):
            return Cosine()(observation.replay(x, label), observation.update)

    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(leaf), leaf)
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = torch.randn(images.shape, generator=rng, dtype=torch.float64)
        step = 1e-6  # within which no ReLU of so small a network flips
        ends = [float(distance(images + sign * step * way).detach()) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * step)
        assert float((slope * way).sum()) == pytest.approx(difference, rel=1e-5)


def test_nothing_is_smoothed_at_width_zero() -> None:
    x = torch.randn(8)
    with smoothed_replay(0.0), smoothed_curvature(0.0):
        assert torch.equal(F.relu(x), x.clamp_min(0))
