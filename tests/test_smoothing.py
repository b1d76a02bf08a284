"""The smoothed replay: a ReLU's mean over noise, in any victim, exact where it is narrow."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.inversion.curvature import smoothed_curvature
from gifd.inversion.smoothing import smoothed_replay
from gifd.model import Model
from gifd.victims import Client, ConvNet


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
    observation, secret = Client(model=model).step(image, torch.tensor([3]))
    away = []
    for width in (0.3, 0.03, 0.003, 0.0):
        with smoothed_replay(width):
            update = observation.replay(secret.images, secret.labels).detach()
        away.append(float((update - observation.update).squares().sum()))
    assert away[0] > away[1] > away[2] > away[3]
    assert away[3] < 1e-8


def test_its_slope_is_the_share_of_the_noise_that_passes_and_bends_by_its_density() -> None:
    a = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a.requires_grad_()
    h = 0.5 * a.detach().std(correction=0)
    density = torch.exp(-0.5 * (a.detach() / h).square()) / (h * (2 * torch.pi) ** 0.5)
    with smoothed_replay(0.5):
        (slope,) = torch.autograd.grad(F.relu(a).sum(), a, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), a)
    assert torch.allclose(slope, torch.special.ndtr(a / h))
    assert torch.allclose(bend, density)


def test_nothing_is_smoothed_at_width_zero() -> None:
    x = torch.randn(8)
    with smoothed_replay(0.0), smoothed_curvature(0.0):
        assert torch.equal(F.relu(x), x.clamp_min(0))
