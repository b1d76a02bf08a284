"""Every two defences, in both orders, under every protocol: they work, or are refused in a line."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.federation.defenses import (
    ATS,
    DPSGD,
    Aggregate,
    Censor,
    Clip,
    Defense,
    Laplace,
    Noise,
    Precode,
    Quantize,
    Soteria,
    Sparsify,
)
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.model import Model
from gifd.updates import Update
from gifd.victims import LeNet

INSIDE: list[Defense] = [
    Aggregate(clients=2),
    ATS(policies="7-0+43-4"),
    Censor(tries=2),
    Precode(width=5),
    DPSGD(noise=0.1, norm=0.3),
]
OUTSIDE: list[Defense] = [
    Noise(std=0.1),
    Laplace(std=0.1),
    Clip(norm=0.5),
    Sparsify(rate=0.5),
    Soteria(rate=0.5),
    Quantize(scheme="sign"),
]
EXACT = (Aggregate, ATS, Clip, Sparsify, Soteria, Quantize)
"""Defences whose replay of the private batch equals the update."""
PROTOCOLS: list[Protocol] = [
    FedSGD(),
    FedAvg(steps=2, lr=0.1),
    FedAvg(steps=3, lr=0.1, batch_size=1, optimizer=SGD(momentum=0.5)),
]
LABELS = torch.tensor([0, 1, 2, 2])


def victim() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(module=LeNet(4, size=8).eval())


VICTIM = victim()


def images(seed: int) -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def observed(defenses: tuple[Defense, ...], protocol: Protocol, seed: int = 0) -> Observation:
    client = Client(model=VICTIM, protocol=protocol, defenses=defenses, seed=seed)
    return observe(client.step(images(0), LABELS)[0], defenses=defenses)


def refusal(first: Defense, second: Defense) -> str | None:
    if first in OUTSIDE and second in INSIDE:
        return "give it first"
    if isinstance(first, DPSGD) and isinstance(second, Soteria):
        return "proof would be void"
    return None


def kind(defense: Defense) -> str:
    return type(defense).__name__


PAIRS = list(permutations([*INSIDE, *OUTSIDE], 2))


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=kind)
def test_two_defences_work_together_or_are_refused(first: Defense, second: Defense) -> None:
    says = refusal(first, second)
    if says is not None:
        with pytest.raises(InputError, match=says) as error:
            Client(model=VICTIM, defenses=(first, second))
        assert "\n" not in str(error.value)
        return
    for protocol in PROTOCOLS:
        told = observed((first, second), protocol)
        start = images(1).requires_grad_()
        replayed = told.replay(start, LABELS)
        (slope,) = torch.autograd.grad((replayed - told.update).squares().sum(), start)
        assert bool(torch.isfinite(slope).all())
        assert float(slope.abs().max()) > 0
        if isinstance(first, EXACT) and isinstance(second, EXACT):
            away = (told.replay(images(0), LABELS) - told.update).norm() / told.update.norm()
            assert float(away) < 1e-4


def away(one: Update, other: Update) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_each_example_draws_its_own_bottlenecks_noise_under_dpsgd(protocol: Protocol) -> None:
    """Without clipping, the mean of the examples' gradients is the batch's gradient."""
    idle = DPSGD(noise=0.0, norm=1e6)
    alone = observed((Precode(width=5),), protocol).update
    assert away(observed((Precode(width=5), idle), protocol).update, alone) < 1e-4
    assert away(observed((Precode(width=5),), protocol, seed=1).update, alone) > 1e-3
    assert observed((idle, Precode(width=5)), protocol).update.keys() == alone.keys()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_dpsgd_clips_what_censor_made_of_each_example(order: tuple[int, int]) -> None:
    """Without noise each example adds at most `norm / B`, and the mean is orthogonal to none."""
    pair = (Censor(tries=2), DPSGD(noise=0.0, norm=0.01))
    sent = observed((pair[order[0]], pair[order[1]]), FedSGD()).update
    plain = observed((DPSGD(noise=0.0, norm=0.01),), FedSGD()).update
    assert float(sent.norm()) <= 0.01
    assert away(sent, plain) > 0.5


def test_one_example_under_dpsgd_is_censored_as_without_it() -> None:
    idle, censor = DPSGD(noise=0.0, norm=1e6), Censor(tries=4, step=1e-2)
    one, label = images(0)[:1], LABELS[:1]
    alone, both = (
        Client(model=VICTIM, defenses=defenses).step(one, label)[0].update
        for defenses in ((censor,), (censor, idle))
    )
    assert away(both, alone) < 1e-4


def test_without_noise_nothing_is_proved_and_soteria_may_look() -> None:
    assert observed((DPSGD(noise=0.0, norm=0.3), Soteria(rate=0.5)), FedSGD()).update.numel > 0
