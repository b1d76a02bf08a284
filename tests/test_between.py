"""Between: one gradient in the place of local training that is not known."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gifd.attacker.observe import observe
from gifd.attacks import ensemble, ig
from gifd.catalog import protocol
from gifd.errors import InputError
from gifd.federation.between import Between
from gifd.federation.client import Client
from gifd.federation.defenses import Sparsify
from gifd.federation.optimizers import SGD, Adam
from gifd.federation.protocols import FedAvg, Protocol
from gifd.federation.upload import Upload
from gifd.leakage.labels import label_hypotheses
from gifd.leaves import dead_leaves
from gifd.model import Model
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

LABELS = torch.tensor([3, 1])


def images() -> Tensor:
    return dead_leaves(2, (3, 16, 16), torch.Generator().manual_seed(0)).double()


def sent(does: Protocol) -> Upload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(module=ConvNet(5, width=8).eval().double())
    return Client(model=model, protocol=does).step(images(), LABELS)[0]


def away(upload: Upload, belief: Protocol) -> float:
    """The cosine distance of the truth's replay."""
    observation = observe(replace(upload, protocol=belief))
    truth = observation.replay(images(), LABELS)
    cosine = truth.dot(observation.update) / (truth.norm() * observation.update.norm())
    return 1 - float(cosine)


@pytest.mark.parametrize("lr", [1e-3, 0.5])
def test_of_one_step_the_beginning_is_the_truth(lr: float) -> None:
    upload = sent(FedAvg(steps=1, lr=lr))
    assert away(upload, Between(at=0.0)) < 1e-12


@pytest.mark.parametrize(
    "does",
    [
        FedAvg(steps=16, lr=0.05),
        FedAvg(steps=12, lr=0.02, batch_size=1, optimizer=SGD(momentum=0.9)),
        FedAvg(steps=8, lr=1e-3, optimizer=Adam()),
    ],
    ids=repr,
)
def test_of_many_steps_the_middle_is_nearer_than_the_beginning(does: FedAvg) -> None:
    upload = sent(does)
    middle = away(upload, Between())
    assert middle < away(upload, Between(at=0.0))
    assert middle < away(upload, FedAvg(steps=1, lr=0.1))


@pytest.mark.parametrize("steps", [1, 16])
def test_the_gradient_has_about_the_size_of_one(steps: int) -> None:
    upload = sent(FedAvg(steps=steps, lr=0.05))
    observation = observe(replace(upload, protocol=Between()))
    model = upload.model
    gradient = Between().local(model, model.parameters, model.buffers, images(), LABELS)
    ratio = float(observation.gradient.norm() / gradient.norm())
    assert abs(math.log(ratio)) < math.log(4)
    assert float(observation.gradient.dot(gradient)) > 0


def test_a_label_is_read() -> None:
    for label in range(5):
        model = sent(FedAvg(steps=1, lr=0.05)).model
        client = Client(model=model, protocol=FedAvg(steps=12, lr=0.05))
        upload, _ = client.step(images()[:1], torch.tensor([label]))
        found, _ = label_hypotheses(observe(replace(upload, protocol=Between())))
        assert found.tolist() == [[label]]


def test_attacks_and_defences_take_it() -> None:
    upload = replace(sent(FedAvg(steps=8, lr=0.05)), labels=LABELS)
    found = []
    for attack in (ig(restarts=1).with_steps(30), ensemble(None).with_evaluations(30)):
        found.append(attack(observe(replace(upload, protocol=Between()))))
    assert all(math.isfinite(each.distance) for each in found)
    curve = found[0].phases[0].curve
    assert curve[-1][0] < curve[0][0]
    sparse = (Sparsify(rate=0.5),)
    client = Client(model=upload.model, protocol=FedAvg(steps=8, lr=0.05), defenses=sparse)
    defended, _ = client.step(images(), LABELS)
    observation = observe(replace(defended, protocol=Between(), labels=LABELS), defenses=sparse)
    assert math.isfinite(ig(restarts=1).with_steps(2)(observation).distance)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Between(at=1.5), "from 0 .before. to 1 .after., got at=1.5"),
        (lambda: sent(Between()), "protocol that a client can compute"),
    ],
)
def test_what_it_cannot_be_is_one_line(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_it_has_a_name() -> None:
    assert protocol("between:at=0.25", images=4) == Between(at=0.25)
