"""Updates and grants of any dtype and device are converted to the model's, in one place."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gifd.attacker.observation import Ledger, Observation
from gifd.attacker.observe import observe
from gifd.attacks import ig
from gifd.batch_norm import Statistics
from gifd.errors import GifdError, InputError, UpdateError
from gifd.federation.client import Client
from gifd.federation.protocols import FedSGD
from gifd.leakage.labels import label_hypotheses
from gifd.model import Model
from gifd.updates import Update
from gifd.victims import ConvNet

Pictures = Callable[..., Tensor]
DTYPES = [torch.float16, torch.bfloat16, torch.float64]
ELSEWHERE = [
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
    pytest.param(
        "mps",
        marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Metal device"),
    ),
]


def seen(victim: Model, pictures: Pictures, batch: int = 1) -> Observation:
    client = Client(model=victim, grant_labels=batch > 1, grant_batch_norm="batch")
    return observe(client.step(pictures(3, batch, 16), torch.arange(batch) + 1)[0])


def again(observation: Observation, update: Update, ledger: Ledger | None = None) -> Observation:
    """An upload from elsewhere."""
    return Observation(
        update=update,
        model=observation.model,
        protocol=FedSGD(),
        ledger=ledger or observation.ledger,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_update_of_another_dtype_is_the_models(
    dtype: torch.dtype, victim: Model, pictures: Pictures
) -> None:
    observation = seen(victim, pictures)
    sent = observation.update.map(lambda tensor: tensor.to(dtype))
    taken = again(observation, sent)
    for name, tensor in taken.update.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, sent[name].float())
    found = ig(restarts=1).with_steps(3)(taken)
    assert found.labels.tolist() == [1]


def test_a_float64_model_keeps_what_a_float64_update_says(pictures: Pictures) -> None:
    model = Model(module=ConvNet(4, width=4).double().eval())
    observation = seen(model, lambda *of: pictures(*of).double())
    assert all(tensor.dtype == torch.float64 for tensor in observation.update.tensors)
    taken = again(observation, observation.update.map(lambda tensor: tensor.float()))
    assert all(tensor.dtype == torch.float64 for tensor in taken.update.tensors)


def test_restarts_are_cast_too(victim: Model, pictures: Pictures) -> None:
    update = seen(victim, pictures).update.map(lambda tensor: tensor.double())
    taken = Update.stack([update, update]).conform(victim.parameters)
    assert taken.restarts == 2
    assert all(tensor.dtype == torch.float32 for tensor in taken.tensors)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.double() + 1e300, "not finite in float32"),
        (lambda t: t.half() / 0, "not finite in float32"),
        (lambda t: t / 0, "not finite$"),
        (lambda t: t.long(), "expected floating-point numbers, got int64"),
        (lambda t: t > 0, "expected floating-point numbers, got bool"),
        (lambda t: t.to(torch.complex64), "expected floating-point numbers, got complex64"),
    ],
)
def test_what_cannot_be_cast_is_named(
    change: Callable[[Tensor], Tensor], says: str, victim: Model, pictures: Pictures
) -> None:
    observation = seen(victim, pictures)
    tensors = dict(observation.update)
    tensors["fc.bias"] = change(tensors["fc.bias"])
    with pytest.raises(UpdateError, match=f"'fc.bias' .*{says}") as error:
        again(observation, Update(tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16], ids=str)
def test_granted_labels_and_statistics_are_cast(
    dtype: torch.dtype, victim: Model, pictures: Pictures
) -> None:
    observation = seen(victim, pictures, batch=2)
    assert observation.ledger.labels is not None
    assert observation.ledger.batch_norm is not None
    ledger = dataclasses.replace(
        observation.ledger,
        labels=observation.ledger.labels.to(dtype),
        batch_norm=tuple(
            Statistics(mean=each.mean.double(), variance=each.variance.half())
            for each in observation.ledger.batch_norm
        ),
    )
    taken = again(observation, observation.update, ledger).ledger
    assert taken.labels is not None
    assert taken.labels.dtype == torch.int64
    assert taken.labels.tolist() == [1, 2]
    assert taken.batch_norm is not None
    for cast, own in zip(taken.batch_norm, observation.ledger.batch_norm, strict=True):
        assert cast.mean.dtype == cast.variance.dtype == torch.float32
        assert torch.equal(cast.mean, own.mean)
    found = ig(restarts=1).with_steps(2)(again(observation, observation.update, ledger))
    assert found.label_source == "granted"


@pytest.mark.parametrize("labels", [torch.tensor([1.0, 2.0]), torch.zeros(2, 3, dtype=torch.long)])
def test_granted_labels_that_the_loss_does_not_take_are_refused(
    labels: Tensor, victim: Model, pictures: Pictures
) -> None:
    observation = seen(victim, pictures, batch=2)
    ledger = dataclasses.replace(observation.ledger, labels=labels)
    with pytest.raises(InputError, match=r"granted labels as whole numbers") as error:
        label_hypotheses(again(observation, observation.update, ledger))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_granted_label_that_the_model_does_not_have_is_refused(
    label: int, victim: Model, pictures: Pictures
) -> None:
    observation = seen(victim, pictures)
    ledger = dataclasses.replace(observation.ledger, labels=torch.tensor([label]))
    with pytest.raises(InputError, match=rf"labels from 0 to 3 .* got \[{label}\]"):
        label_hypotheses(again(observation, observation.update, ledger))


@pytest.mark.parametrize("device", ELSEWHERE)
def test_what_is_on_another_device_is_moved(device: str, victim: Model, pictures: Pictures) -> None:
    observation = seen(victim, pictures, batch=2)
    ledger = dataclasses.replace(
        observation.ledger.to(next(iter(victim.parameters.values())).to(device))
    )
    taken = again(observation, observation.update.to(device), ledger)
    assert taken.ledger.labels is not None
    assert taken.ledger.labels.device == victim.device
    assert all(tensor.device == victim.device for tensor in taken.update.tensors)
    assert ig(restarts=1).with_steps(2)(taken).label_source == "granted"


def test_a_tensor_without_numbers_is_one_line(victim: Model, pictures: Pictures) -> None:
    observation = seen(victim, pictures)
    with pytest.raises(GifdError) as error:
        again(observation, observation.update.to("meta"))
    assert "\n" not in str(error.value)
