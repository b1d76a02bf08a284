"""Protocols, each compared with a plain PyTorch loop."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.errors import InputError
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.model import Model
from gifd.updates import Update

pytestmark = pytest.mark.numerical

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
LABELS = torch.tensor([0, 3, 1, 1])


def replay(protocol: Protocol, model: Model, images: Tensor, labels: Tensor) -> Update:
    return protocol(model, model.parameters, model.buffers, images, labels)


def normalized(images: Tensor) -> Tensor:
    mean, std = images.new_tensor(MEAN)[:, None, None], images.new_tensor(STD)[:, None, None]
    return (images - mean) / std


def by_autograd(module: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(module(normalized(images)), labels)
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def by_sgd(
    module: nn.Module, images: Tensor, labels: Tensor, protocol: FedAvg
) -> dict[str, Tensor]:
    """A client's local training as a usual PyTorch loop."""
    local = copy.deepcopy(module)
    optimizer = torch.optim.SGD(local.parameters(), lr=protocol.lr, momentum=protocol.momentum)
    size = protocol.batch_size or len(images)
    batches = [(images[i : i + size], labels[i : i + size]) for i in range(0, len(images), size)]
    for step in range(protocol.steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(local(normalized(x)), y))
        optimizer.step()
    start = dict(module.named_parameters())
    return {name: (p - start[name]).detach() for name, p in local.named_parameters()}


def same(update: Update, expected: dict[str, Tensor], atol: float = 1e-14) -> bool:
    return list(update) == list(expected) and all(
        torch.allclose(update[name], expected[name], rtol=1e-9, atol=atol) for name in expected
    )


@pytest.mark.parametrize("batch", [1, 4])
def test_fedsgd_is_the_gradient(smooth: Model, pictures: Callable[..., Tensor], batch: int) -> None:
    images, labels = pictures(1, batch).double(), LABELS[:batch]
    update = replay(FedSGD(), smooth, images, labels)
    assert same(update, by_autograd(smooth.module, images, labels))
    assert FedSGD().as_gradient(update) is update


def test_fedsgd_takes_probabilities_for_labels(
    smooth: Model, pictures: Callable[..., Tensor]
) -> None:
    images = pictures(1, 4).double()
    soft = F.one_hot(LABELS, 4).double()
    assert same(replay(FedSGD(), smooth, images, soft), by_autograd(smooth.module, images, LABELS))


@given(st.integers(0, 10**6), st.floats(1e-4, 1.0), st.floats(0, 0.99))
def test_one_step_of_fedavg_is_a_scaled_gradient(seed: int, lr: float, momentum: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3))
    model = Model(module=module.double())
    images = torch.rand(2, 3, 4, 4, generator=rng).double()
    labels = torch.randint(3, (2,), generator=rng)
    protocol = FedAvg(steps=1, lr=lr, momentum=momentum)
    gradient = replay(FedSGD(), model, images, labels)
    update = replay(protocol, model, images, labels)
    assert same(update, dict(gradient * -lr))
    assert same(protocol.as_gradient(update), dict(gradient), atol=1e-14 / lr)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("steps", "batch_size"), [(3, None), (2, 2), (5, 1), (8, 2)])
def test_fedavg_is_local_sgd(
    smooth: Model,
    pictures: Callable[..., Tensor],
    steps: int,
    batch_size: int | None,
    momentum: float,
) -> None:
    images = pictures(1, 4).double()
    protocol = FedAvg(steps=steps, lr=0.05, batch_size=batch_size, momentum=momentum)
    update = replay(protocol, smooth, images, LABELS)
    expected = by_sgd(smooth.module, images, LABELS, protocol)
    assert same(update, expected)
    gradient = protocol.as_gradient(update)
    lengths = sum(momentum**k for t in range(steps) for k in range(t + 1))
    assert same(gradient, {n: -t / (0.05 * lengths) for n, t in expected.items()})
    visited = protocol.visited(smooth.parameters, update)
    assert len(visited) == steps
    for name, p in smooth.parameters.items():
        assert torch.equal(visited[0][name], p)
        step = (steps - 1) / steps * update[name]
        assert torch.allclose(visited[-1][name] - p, step, atol=1e-12)


@pytest.mark.parametrize(
    "protocol", [FedSGD(), FedAvg(steps=3, lr=0.1, batch_size=1, momentum=0.5)]
)
def test_an_update_is_differentiable_in_the_images(
    smooth: Model, pictures: Callable[..., Tensor], protocol: Protocol
) -> None:
    """The derivative of <update, v> along a direction, against central differences."""
    images, labels = pictures(1, 2).double(), LABELS[:2]
    rng = torch.Generator().manual_seed(7)
    v = Update(
        {
            name: torch.randn(p.shape, generator=rng, dtype=p.dtype)
            for name, p in smooth.parameters.items()
        }
    )

    def product(x: Tensor) -> Tensor:
        return replay(protocol, smooth, x, labels).dot(v)

    gradient = torch.func.grad(product)(images)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=rng, dtype=torch.float64)
        step = 1e-5
        ahead, behind = product(images + step * direction), product(images - step * direction)
        slope = float(ahead - behind) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_a_replay_changes_neither_parameters_nor_images(
    smooth: Model, pictures: Callable[..., Tensor]
) -> None:
    images = pictures(1, 2).double()
    before = images.clone(), {name: p.clone() for name, p in smooth.parameters.items()}
    replay(FedAvg(steps=2, lr=0.1, momentum=0.9), smooth, images, LABELS[:2])
    assert torch.equal(images, before[0])
    assert all(torch.equal(p, before[1][name]) for name, p in smooth.parameters.items())


@pytest.mark.parametrize(
    ("steps", "lr", "batch_size", "momentum"),
    [
        (0, 0.1, None, 0.0),
        (1, 0.0, None, 0.0),
        (1, -0.1, None, 0.0),
        (1, 0.1, None, 1.0),
        (1, 0.1, None, -0.1),
        (1, 0.1, 0, 0.0),
    ],
)
def test_a_protocol_nobody_can_run(
    steps: int, lr: float, batch_size: int | None, momentum: float
) -> None:
    with pytest.raises(InputError, match="expected") as error:
        FedAvg(steps=steps, lr=lr, batch_size=batch_size, momentum=momentum)
    assert "\n" not in str(error.value)


def test_local_batches_must_divide_the_batch(
    smooth: Model, pictures: Callable[..., Tensor]
) -> None:
    with pytest.raises(InputError, match="local batches of 3 divide, got 4 images"):
        replay(FedAvg(steps=1, lr=0.1, batch_size=3), smooth, pictures(1, 4).double(), LABELS)


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=2, lr=0.1, batch_size=4)])
def test_its_words_rebuild_it(protocol: Protocol) -> None:
    assert eval(repr(protocol), {"FedSGD": FedSGD, "FedAvg": FedAvg}) == protocol
