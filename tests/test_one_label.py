"""A label that may be wrong is refused or called estimated; a right one is never refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observation import Ledger, Observation
from gifd.attacker.observe import observe
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.defenses import Clip, Defense, Noise, Quantize, Soteria, Sparsify
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.leakage.labels import infer_label, label_hypotheses
from gifd.model import Model
from gifd.updates import Update

GRADIENT, STEP, STEPS = FedSGD(), FedAvg(steps=1, lr=0.1), FedAvg(steps=4, lr=0.01)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def network(seed: int, classes: int, bias: bool = True, sure: float = 1.0) -> nn.Module:
    """With a head whose weights are `sure` times PyTorch's initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(72, classes, bias=bias)
        with torch.no_grad():
            head.weight.mul_(sure)
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), head)


def batch(seed: int, classes: int, size: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, 8, 8, generator=rng), torch.randint(classes, (size,), generator=rng)


def sent(model: Model, protocol: Protocol, seed: int, size: int = 1) -> tuple[Update, Tensor]:
    images, labels = batch(seed, model.classes((3, 8, 8)), size)
    update = protocol(model, model.parameters, model.buffers, images, labels)
    return update.detach(), labels


def observed(update: Update, model: Model, protocol: Protocol = GRADIENT) -> Observation:
    """The observation of one image from elsewhere."""
    ledger = Ledger(image_shape=(3, 8, 8), batch_size=1)
    return Observation(update=update, model=model, protocol=protocol, ledger=ledger)


drawn = {
    "seed": st.integers(0, 10**6),
    "classes": st.sampled_from([2, 3, 10, 100]),
    "bias": st.booleans(),
    "sure": st.sampled_from([0.1, 1.0, 10.0]),
}


@given(**drawn)
@settings(max_examples=25)
def test_one_honest_image_is_never_refused(
    seed: int, classes: int, bias: bool, sure: float
) -> None:
    model = Model(module=network(seed, classes, bias, sure))
    for protocol in (GRADIENT, STEP, STEPS):
        update, labels = sent(model, protocol, seed)
        head = [tensor for name, tensor in update.items() if name.startswith("3.")]
        if not bool(head[-1].any()) or float(head[-1].norm()) < 1e-4:
            continue  # so sure that rounding may hide it
        label, source = label_hypotheses(observed(update, model, protocol))
        assert label.tolist() == [labels.tolist()]
        if protocol == GRADIENT and (bias or classes == 10):
            assert source == "inferred" or sure == 10


def leaving(model: Model, seed: int, labels: Tensor) -> set[int]:
    """The labels of the images that contribute to the update."""
    images, _ = batch(seed, model.classes((3, 8, 8)), len(labels))
    lengths = [
        float(FedSGD()(model, model.parameters, model.buffers, image[None], label[None]).norm())
        for image, label in zip(images, labels, strict=True)
    ]
    pairs = zip(labels.tolist(), lengths, strict=True)
    return {label for label, length in pairs if length >= 0.02 * max(lengths)}


WRONG: dict[str, Callable[[Model, int], tuple[Update, Tensor, Protocol]]] = {
    "flipped": lambda m, s: (-sent(m, GRADIENT, s)[0], sent(m, GRADIENT, s)[1], GRADIENT),
    "flipped change": lambda m, s: (-sent(m, STEP, s)[0], sent(m, STEP, s)[1], STEP),
    "flipped changes": lambda m, s: (-sent(m, STEPS, s)[0], sent(m, STEPS, s)[1], STEPS),
    "smoothed": lambda m, s: (*sent(Model(module=m.module, loss=smoothed), GRADIENT, s), GRADIENT),
    "two images": lambda m, s: (*sent(m, GRADIENT, s, 2), GRADIENT),
    "eight images": lambda m, s: (*sent(m, GRADIENT, s, 8), GRADIENT),
    "eight, steps": lambda m, s: (*sent(m, STEPS, s, 8), STEPS),
    "weights": lambda m, s: (Update(dict(m.parameters)), sent(m, GRADIENT, s)[1], GRADIENT),
    "weights, change": lambda m, s: (
        Update(dict(m.parameters)) + sent(m, STEP, s)[0],
        sent(m, GRADIENT, s)[1],
        STEP,
    ),
    "tenth": lambda m, s: (sent(m, GRADIENT, s)[0] * 0.1, sent(m, GRADIENT, s)[1], GRADIENT),
}
"""A model and a seed -> an update of another kind than believed, its labels, the belief."""


@pytest.mark.parametrize("kind", WRONG)
@given(**drawn)
@example(seed=0, classes=2, bias=True, sure=1.0)
@example(seed=175, classes=3, bias=True, sure=10.0)
@example(seed=134947, classes=3, bias=False, sure=10.0)
@settings(max_examples=25)
def test_no_wrong_label_is_called_inferred(
    kind: str, seed: int, classes: int, bias: bool, sure: float
) -> None:
    model = Model(module=network(seed, classes, bias, sure))
    update, labels, protocol = WRONG[kind](model, seed)
    try:
        label, source = label_hypotheses(observed(update, model, protocol))
    except (InputError, ModelError):
        return
    assert source == "estimated" or leaving(model, seed, labels) == set(label[0].tolist())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("flipped", "got 9: it looks like one with its sign flipped"),
        ("flipped change", "got 9: it looks like one with its sign flipped"),
        ("flipped changes", "got 9: it looks like one with its sign flipped"),
        ("smoothed", "smoothed by 0.1,"),
        ("two images", "got 2: it looks like a batch of several images"),
        ("eight images", "a batch of several images"),
        ("eight, steps", "a batch of several images"),
        ("weights", "the weights themselves"),
        ("weights, change", "the weights themselves"),
        ("tenth", "got 1, but of other sizes than the model leaves: it looks like one times 0.1"),
    ],
)
def test_what_it_looks_like_is_said(kind: str, says: str) -> None:
    model = Model(module=network(0, 10))
    update, _, protocol = WRONG[kind](model, 0)
    for read in (infer_label, label_hypotheses):
        with pytest.raises(InputError, match=says) as error:
            read(observed(update, model, protocol))
        assert "\n" not in str(error.value)
        assert str(error.value).startswith("expected the head's gradient of one image, in which")


@pytest.mark.parametrize("seed", range(6))
def test_the_models_own_loss_is_asked(seed: int) -> None:
    """With smoothed labels and a confident model, the minimum is often at another class."""
    module = network(seed, 3, sure=30.0)
    images, _ = batch(seed, 3)
    model = Model(module=module, loss=smoothed)
    label = model.logits(model.parameters, model.buffers, images).argmax(1)
    update = FedSGD()(model, model.parameters, model.buffers, images, label).detach()
    found, source = label_hypotheses(observed(update, model))
    assert (found.tolist(), source) == ([label.tolist()], "inferred")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_format_is_no_reason_to_refuse(dtype: torch.dtype) -> None:
    model = Model(module=network(0, 10))
    update, labels = sent(model, GRADIENT, 0)
    cast = update.map(lambda tensor: tensor.to(dtype))
    found, source = label_hypotheses(observed(cast, model))
    assert (found.tolist(), source) == ([labels.tolist()], "inferred")


DEFENDED: list[tuple[Defense, str, str]] = [
    (Noise(std=0.1), "static", "estimated"),
    (Noise(std=0.1), "adaptive", "estimated"),
    (Sparsify(rate=0.9), "static", "estimated"),
    (Soteria(rate=0.9), "static", "estimated"),
    (Soteria(rate=0.9), "adaptive", "inferred"),
    (Clip(norm=0.1), "static", "estimated"),
    (Quantize(scheme="sign"), "static", "estimated"),
    (Quantize(scheme="bf16"), "static", "inferred"),
]


@pytest.mark.parametrize(("defense", "attacker", "source"), DEFENDED, ids=repr)
def test_behind_a_defence_the_label_is_estimated(
    defense: Defense, attacker: str, source: str
) -> None:
    client = Client(model=Model(module=network(0, 10)), defenses=(defense,))
    images, labels = batch(0, 10)
    upload, _ = client.step(images, labels)
    observation = observe(upload, attacker=attacker, defenses=(defense,))
    found = label_hypotheses(observation)
    assert found[1] == source
    if source == "inferred":
        assert found[0].tolist() == [labels.tolist()]


def test_of_an_update_from_elsewhere_the_belief_is_in_the_ledger() -> None:
    model = Model(module=network(0, 10))
    update, _ = sent(model, GRADIENT, 0)
    rng = torch.Generator().manual_seed(0)
    noisy = update.map(lambda tensor: tensor + 0.1 * torch.randn(tensor.shape, generator=rng))
    with pytest.raises(InputError, match="name the ledger's attacker if a defence is at work"):
        label_hypotheses(observed(noisy, model))
    upload = Upload(
        update=noisy, model=model, protocol=GRADIENT, image_shape=(3, 8, 8), batch_size=1
    )
    known = observe(upload, defenses=(Noise(std=0.1),))
    assert known.grants()["believed"] == ["Noise(std=0.1)"]
    assert label_hypotheses(known)[1] == "estimated"
