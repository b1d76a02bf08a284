"""A simulated federation in Flower's apps, strategy and grid: the numbers of one without."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from gifd.errors import InputError
from gifd.federation.dealing import dealt
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg
from gifd.federation.servers import Averaging, Descent, Server
from gifd.federation.simulation import Round, Simulation
from gifd.integrations.flower_simulation import simulate
from gifd.model import Model
from gifd.updates import Update


def training(images: int) -> FedAvg:
    """Two epochs, so clients with more images take more steps."""
    steps = FedAvg.steps_of(2, images, 8)
    return FedAvg(steps=steps, lr=0.05, batch_size=8, optimizer=SGD(momentum=0.9))


def federation(
    *,
    train: bool = False,
    double: bool = True,
    batch: int | None = None,
    server: Server | None = None,
) -> Simulation:
    """Three clients with different numbers of images."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(8 * 9, 4)).train(train)
    labels = torch.randint(4, (90,), generator=rng)
    return Simulation(
        model=Model(module=net.double() if double else net),
        images=torch.randint(256, (90, 3, 8, 8), generator=rng, dtype=torch.uint8),
        labels=labels,
        shares=dealt(labels, clients=3, own=0.6, rng=rng),
        protocol=training,
        batch=batch,
        server=server or Averaging(),
    )


def away(one: Update, other: Update) -> float:
    """The distance relative to the length."""
    return float((one - other).norm() / other.norm())


def moved(done: Round) -> Update:
    """What a round did to the weights."""
    return Update(dict(done.after.parameters)) - Update(dict(done.before.parameters))


def check(simulation: Simulation, engine: str) -> None:
    """Three rounds in Flower, and the same without."""
    seen: list[Round] = []
    final = simulate(simulation, 3, seen.append, engine=engine)  # type: ignore[arg-type]
    expected = list(simulation.rounds(3))
    assert [done.number for done in seen] == [1, 2, 3]
    for done, own in zip(seen, expected, strict=True):
        assert away(moved(done), moved(own)) < 1e-6
        for reply, other in zip(done.replies, own.replies, strict=True):
            assert away(reply.update, other.update) < 1e-6
            assert reply.images == other.images
            assert set(reply.buffers) == set(other.buffers)
        for name, buffer in own.after.buffers.items():
            torch.testing.assert_close(done.after.buffers[name], buffer, rtol=1e-6, atol=0)
    assert bool(expected[0].replies[0].buffers) == simulation.model.training
    for name, tensor in final.parameters.items():
        torch.testing.assert_close(tensor, seen[-1].after.parameters[name], rtol=0, atol=0)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("batch", [None, 8])
def test_flower_gives_the_same_numbers(train: bool, batch: int | None) -> None:
    simulation = federation(train=train, batch=batch)
    if batch is None:
        assert len({len(own) for own in simulation.shares}) > 1, "weights matter"
    check(simulation, "process")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_flowers_own_engine_gives_the_same_numbers() -> None:
    check(federation(train=True), "ray")


def test_in_single_precision_the_weights_are_the_same_to_its_rounding() -> None:
    simulation = federation(double=False)
    final = simulate(simulation, 2, engine="process")
    *_, last = simulation.rounds(2)
    weights, other = (Update(dict(model.parameters)) for model in (final, last.after))
    assert away(weights, other) < 1e-6


def test_a_server_that_flower_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="a server that averages"):
        simulate(federation(server=Descent(0.1)), 1)
    with pytest.raises(InputError, match="at least 1 round"):
        simulate(federation(), 0)


def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="expected Ray"):
        simulate(federation(), 1, engine="ray")


def test_nothing_of_the_model_or_of_flower_is_changed() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    simulation = federation(train=True)
    before: dict[str, Tensor] = {n: t.clone() for n, t in simulation.model.state().items()}
    identity = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    simulate(simulation, 1, engine="process")
    assert all(torch.equal(t, before[n]) for n, t in simulation.model.state().items())
    assert identity == (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
