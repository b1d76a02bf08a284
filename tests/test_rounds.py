"""Several rounds of one client under one roof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gifd import attacks
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacker.rounds import Rounds, rounds
from gifd.audit import fit
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.federation.defenses import Clip, Defense, Noise, Sparsify
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.leaves import dead_leaves
from gifd.metrics import MSE
from gifd.model import Model
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

PROTOCOLS: list[Protocol] = [
    FedSGD(),
    FedAvg(steps=3, lr=0.05, optimizer=SGD(momentum=0.5, weight_decay=0.01)),
]
LABELS = torch.tensor([2, 4])


def images() -> Tensor:
    return dead_leaves(2, (3, 16, 16), torch.Generator().manual_seed(5)).double()


def model_of(seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(module=ConvNet(6, width=8).eval().double())


def uploads(
    protocol: Protocol, count: int, batch: int = 2, defenses: Sequence[Defense] = ()
) -> list[Upload]:
    return [
        Client(model=model_of(k), protocol=protocol, defenses=tuple(defenses), seed=k).step(
            images()[:batch], LABELS[:batch]
        )[0]
        for k in range(count)
    ]


def observed(protocol: Protocol, count: int, batch: int = 2) -> Observation:
    return rounds([observe(upload) for upload in uploads(protocol, count, batch)])


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_they_hold_each_rounds_update_and_gradient(protocol: Protocol) -> None:
    each = uploads(protocol, 3)
    seen = rounds([observe(upload) for upload in each])
    assert repr(seen.protocol) == f"3 rounds of {protocol!r}"
    for k, upload in enumerate(each):
        own = observe(upload)
        for name in upload.update:
            assert torch.equal(seen.update[f"rounds.{k}.{name}"], upload.update[name])
            assert torch.allclose(
                seen.gradient[f"rounds.{k}.{name}"], own.gradient[name], rtol=1e-12, atol=1e-15
            )


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_the_truth_is_replayed(protocol: Protocol) -> None:
    whole = observed(protocol, 2)
    error = (whole.replay(images(), LABELS) - whole.update).norm()
    assert float(error) <= 1e-10 * float(whole.update.norm())
    assert list(whole.replay(images(), LABELS)) == list(whole.update)


def test_one_round_is_itself() -> None:
    only = observe(uploads(FedSGD(), 1)[0])
    assert rounds([only]) is only


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_the_label_is_read_as_from_one(protocol: Protocol) -> None:
    attack = attacks.ig(restarts=1).with_steps(2)
    one, both = (attack(observed(protocol, count, batch=1)) for count in (1, 2))
    assert both.labels.tolist() == one.labels.tolist() == [2]
    assert both.label_source == one.label_source


def test_restarts_in_one_call_equal_those_one_by_one() -> None:
    seen = observed(PROTOCOLS[1], 2)
    attack = attacks.ig(restarts=3).with_steps(4)
    alone, together = (attack(seen, batched=batched) for batched in (False, True))
    assert torch.allclose(alone.images, together.images, atol=1e-5)
    assert together.distance == pytest.approx(alone.distance, rel=1e-5)


def _error(seen: Observation) -> float:
    found = attacks.ig(restarts=1).with_steps(150)(seen)
    return float(MSE()(found.images, images()[:1]))


def test_four_rounds_say_more_than_one() -> None:
    one, four = (observed(FedSGD(), count, batch=1) for count in (1, 4))
    assert _error(four) < _error(one)


@pytest.mark.parametrize("name", ["ensemble", "gradinversion", "dlg", "gias"])
def test_other_attacks_take_them(name: str) -> None:
    from gifd import catalog
    from gifd.priors import Generator
    from gifd.priors.dcgan import dcgan_stages

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages = dcgan_stages(latent=8, width=8, channels=3, doublings=2)
    prior = Generator(stages, latent=(8, 1, 1))
    attack = catalog.attack(name, prior=prior, preset="strongest", restarts=1, evaluations=24)
    found = attack(observed(FedSGD(), 2, batch=1))
    assert found.images.shape == (1, 3, 16, 16)
    assert 0 <= found.distance < 10


@pytest.mark.parametrize("defense", [Noise(std=0.05), Clip(norm=0.5), Sparsify(rate=0.5)])
def test_what_is_believed_of_a_defence_is_believed_of_each_round(defense: Defense) -> None:
    each = [observe(u, defenses=(defense,)) for u in uploads(FedSGD(), 2, defenses=(defense,))]
    seen = rounds(each)
    assert seen.protocol.noise(2) == pytest.approx(each[0].protocol.noise(2))
    replayed = seen.replay(images(), LABELS)
    for k, own in enumerate(each):
        alone = own.replay(images(), LABELS)
        for name in alone:
            assert torch.equal(replayed[f"rounds.{k}.{name}"], alone[name])
            hidden, shown = own.protocol.shown(name), seen.protocol.shown(f"rounds.{k}.{name}")
            assert (hidden is None) == (shown is None)
            assert hidden is None or shown is None or torch.equal(hidden, shown)
    found = attacks.ig(restarts=1).with_steps(3)(seen)
    assert found.images.shape == (2, 3, 16, 16)


def test_the_fit_judges_them_together() -> None:
    each = [observe(upload) for upload in uploads(FedSGD(), 2)]
    assert fit(rounds(each), LABELS, clients=20).explained
    wrong = [each[0], replace(each[1], update=-each[1].update)]
    assert not fit(rounds(wrong), LABELS, clients=20).explained


def test_one_module_may_be_in_several_rounds_and_in_mixed_modes() -> None:
    """Its weights are those of each round; a frozen batch norm stays frozen."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(576, 6)).double().train()
    net[1].eval()
    first = Client(model=Model(module=net)).step(images(), LABELS)[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.2)
    second = Client(model=Model(module=net)).step(images(), LABELS)[0]
    for each in ([first, first], [first, second]):
        seen = rounds([observe(upload) for upload in each])
        assert seen.model.training
        error = (seen.replay(images(), LABELS) - seen.update).norm()
        assert float(error) <= 1e-10 * float(seen.update.norm())
    assert [net[1].training, net[3].training] == [False, True]


def test_rounds_that_do_not_belong_together() -> None:
    one, other = (observe(upload) for upload in uploads(FedSGD(), 2))
    with pytest.raises(InputError, match="at least one observation, got none"):
        rounds([])
    with pytest.raises(InputError, match="rounds of one protocol"):
        rounds([one, replace(other, protocol=PROTOCOLS[1])])
    with pytest.raises(InputError, match="rounds of one batch_size, got 2 and 1"):
        rounds([one, observed(FedSGD(), 1, batch=1)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = Model(module=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 6)))
    another, _ = Client(model=wide).step(images(), LABELS)
    with pytest.raises(InputError, match="rounds of one network"):
        rounds([one, observe(another)])
    assert isinstance(rounds([one, other]).protocol, Rounds)
