"""The client: its update can be replayed, and what cannot is refused by name."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifd.attacker.observation import Ledger, Observation
from gifd.attacker.observe import observe
from gifd.errors import InputError, ModelError, UpdateError
from gifd.federation.client import Client, check_replay
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.secret import Secret
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.search import Cosine, Distance, LayerCosine, Squared
from gifd.updates import Update
from gifd.victims import IMAGENET_MEAN, IMAGENET_STD, ConvNet, LeNet, ResNet18

LABELS = torch.tensor([2, 0])
Seeded = Callable[[int, Callable[[], nn.Module]], nn.Module]


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=2, lr=0.01, batch_size=1)])
@pytest.mark.parametrize(
    "make", [lambda: ResNet18(3), lambda: LeNet(3, size=8), lambda: ConvNet(3, width=4)]
)
def test_the_truth_replayed_has_no_distance(
    seeded: Seeded,
    pictures: Callable[..., Tensor],
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
    make: Callable[[], nn.Module],
    protocol: Protocol,
) -> None:
    module = seeded(3, make)
    images = pictures(0, batch=2)
    with untouched(module) if not isinstance(module, ResNet18) else torch.no_grad():
        client = Client(model=Model(module=module), protocol=protocol)
        upload, secret = client.step(images, LABELS)
        observation = observe(upload)
    replayed = observation.replay(secret.images, secret.labels).detach()
    power = float(observation.update.norm()) ** 2
    scales: dict[Distance, float] = {Cosine(): 1, LayerCosine(norm=1.0): 1, Squared(): power}
    for distance, scale in scales.items():
        assert float(distance(replayed, observation.update)) == pytest.approx(0, abs=1e-5 * scale)
    other = observation.replay(1 - secret.images, secret.labels).detach()
    for distance, scale in scales.items():
        assert float(distance(other, observation.update)) > 1e-4 * scale


def test_the_server_gets_no_more_than_was_granted(
    victim: Model, pictures: Callable[..., Tensor]
) -> None:
    images = pictures(0, batch=2, side=16)
    upload, secret = Client(model=victim).step(images, LABELS)
    bare = observe(upload)
    granted = observe(Client(model=victim, grant_labels=True).step(images, LABELS)[0])
    assert bare.grants() == {
        "protocol": "FedSGD()",
        "image_shape": [3, 16, 16],
        "batch_size": 2,
        "labels": None,
        "batch_norm": None,
        "defenses": None,
        "attacker": None,
        "believed": [],
    }
    assert granted.grants() == {**bare.grants(), "labels": [2, 0]}
    assert [field.name for field in fields(Observation)] == [
        "update",
        "model",
        "protocol",
        "ledger",
    ]
    assert torch.equal(secret.images, images)
    assert not any(tensor.requires_grad for tensor in bare.update.tensors)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def agreed(truly: Model, belief: Model, protocol: Protocol, images: Tensor) -> Upload:
    """The upload of a client whose computation differs from what the server believes."""
    update = FedSGD()(truly, truly.parameters, truly.buffers, images, LABELS)
    return Upload(
        update=update, model=belief, protocol=protocol, image_shape=(3, 16, 16), batch_size=2
    )


def test_the_mismatch_of_a_replay_is_named(victim: Model, pictures: Callable[..., Tensor]) -> None:
    images = pictures(0, batch=2, side=16)
    secret = Secret(images=images, labels=LABELS)
    module = victim.module
    summing = Model(module=module, mean=victim.mean, std=victim.std, loss=summed)
    other_units = Model(module=module, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    check_replay(agreed(victim, victim, FedSGD(), images), secret)
    cases = {
        "the replay times 2: another loss reduction": (summing, victim, FedSGD()),
        "the replay times -10: .* sign": (victim, victim, FedAvg(steps=1, lr=0.1)),
        "worst at '.*': another loss, normalisation": (other_units, victim, FedSGD()),
    }
    for reason, (truly, belief, protocol) in cases.items():
        with pytest.raises(ModelError, match=reason) as error:
            check_replay(agreed(truly, belief, protocol, images), secret)
        assert "\n" not in str(error.value)


def test_a_random_layer_is_named(pictures: Callable[..., Tensor]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 3)).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(ModelError, match="two replays differ too: dropout"):
            Client(model=Model(module=module)).step(pictures(0, batch=2), LABELS)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (torch.rand(2, 3, 16, 16), torch.tensor([0, 4]), r"labels from 0 to 3 .* got \[0, 4\]"),
        (torch.rand(2, 3, 16, 16), torch.tensor([-1, 0]), "labels from 0 to 3"),
        (torch.rand(2, 3, 16, 16) + 1, LABELS, r"values in \[0, 1\]"),
        (torch.rand(2, 3, 16, 16) - 1, LABELS, r"values in \[0, 1\]"),
        (torch.full((2, 3, 16, 16), torch.nan), LABELS, r"values in \[0, 1\]"),
        (torch.rand(2, 3, 16, 16), torch.tensor([0]), "one label each"),
        (torch.rand(3, 16, 16), LABELS, r"images \(B, C, H, W\)"),
        (torch.rand(0, 3, 16, 16), LABELS[:0], r"images \(B, C, H, W\)"),
    ],
)
def test_a_batch_that_cannot_be_trained_on(
    victim: Model, images: Tensor, labels: Tensor, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as error:
        Client(model=victim).step(images, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), "model that takes images"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(0)), r"outputs \(B, ...\)"),
        (ConvNet(3, width=4).train(), "model that takes images"),
    ],
)
def test_a_model_that_does_not_fit_the_images(module: nn.Module, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as error:
        Client(model=Model(module=module)).step(torch.rand(1, 3, 8, 8), LABELS[:1])
    assert "\n" not in str(error.value)


def test_an_update_of_another_model_is_refused(victim: Model) -> None:
    ledger = Ledger(image_shape=(3, 16, 16), batch_size=1)
    for parameters, reason in [
        ({"fc.weight": torch.zeros(1)}, "missing"),
        ({n: p * torch.nan for n, p in victim.parameters.items()}, "not finite"),
    ]:
        update = Update(parameters)
        with pytest.raises(UpdateError, match=reason):
            Observation(update=update, model=victim, protocol=FedSGD(), ledger=ledger)
        with pytest.raises(UpdateError, match=reason):
            Upload(
                update=update,
                model=victim,
                protocol=FedSGD(),
                image_shape=(3, 16, 16),
                batch_size=1,
            )


def test_an_observation_is_of_one_client(victim: Model) -> None:
    update = Update(dict(victim.parameters))
    ledger = Ledger(image_shape=(3, 16, 16), batch_size=1)
    stacked = Update.stack([update, update])
    with pytest.raises(InputError, match="one client's update"):
        Observation(update=stacked, model=victim, protocol=FedSGD(), ledger=ledger)


@pytest.mark.parametrize(
    ("shape", "batch", "labels"),
    [((3, 0, 4), 1, None), ((3, 4, 4), 0, None), ((3, 4, 4), 2, torch.tensor([1]))],
)
def test_a_ledger_that_contradicts_itself(
    shape: tuple[int, int, int], batch: int, labels: Tensor | None
) -> None:
    with pytest.raises(InputError, match="expected"):
        Ledger(image_shape=shape, batch_size=batch, labels=labels)
