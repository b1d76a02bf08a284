"""The audit: which clients explain an update, and what unrelated images leave."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.audit import Fit, fit, null_distances, turned
from gifd.audit.statistics import Kind
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.federation.defenses import (
    Clip,
    Defense,
    Hide,
    Noise,
    Quantize,
    Soteria,
    Sparsify,
    wrapped,
)
from gifd.federation.optimizers import SGD, Adam
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.leaves import dead_leaves
from gifd.model import Model
from gifd.search import Cosine, Measure
from gifd.updates import Update
from gifd.victims import ConvNet

LOCAL = FedAvg(steps=4, lr=0.01, batch_size=2)
LABELS = torch.tensor([1, 4, 2, 0, 3, 5, 0, 1])


def model_of(seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(module=ConvNet(8, width=8).eval())


def images_of(seed: int, count: int = 4) -> Tensor:
    """Dead leaves, blurred by averaging, so that they are of another kind than the stand-ins."""
    drawn = dead_leaves(count, (3, 32, 32), torch.Generator().manual_seed(1000 + seed))
    return nn.functional.avg_pool2d(drawn, 2)


def sent(protocol: Protocol, model: Model, seed: int, count: int = 4) -> Update:
    images, labels = images_of(seed, count), LABELS[:count]
    return protocol(model, model.parameters, model.buffers, images, labels).detach()


def observed(update: Update, model: Model, belief: Protocol = LOCAL, count: int = 4) -> Observation:
    upload = Upload(
        update=update,
        model=model,
        protocol=belief,
        image_shape=(3, 16, 16),
        batch_size=count,
        labels=LABELS[:count],
    )
    return observe(upload)


def judged(update: Update, model: Model, belief: Protocol = LOCAL, count: int = 4) -> Fit:
    return fit(observed(update, model, belief, count), LABELS[:count], clients=20)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("belief", [LOCAL, FedSGD(), replace(LOCAL, optimizer=Adam(), lr=0.001)])
def test_a_client_as_believed_is_explained(belief: Protocol, seed: int) -> None:
    model = model_of(seed)
    found = judged(sent(belief, model, seed), model, belief)
    assert found.explained, found
    assert found.misfit < Fit.LIMIT
    assert str(found).startswith("explained: ")


@pytest.mark.parametrize("count", [4, 8])
def test_a_client_that_sums_its_loss_is_named(count: int) -> None:
    """An ordinary client whose loss is reduction='sum'; its factor is the number of images."""
    for seed in range(2):
        model = model_of(seed)
        local = copy.deepcopy(model.module)
        loss = nn.CrossEntropyLoss(reduction="sum")(
            local(model.normalize(images_of(seed, count))), LABELS[:count]
        )
        parameters = dict(local.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        found = judged(
            Update(dict(zip(parameters, gradients, strict=True))), model, FedSGD(), count
        )
        assert not found.explained
        assert found.factor is not None
        assert count / 1.5 < found.factor < count * 1.5
        assert "times too large in all tensors" in found.reason
        assert f"a sum instead of a mean over {count} images" in found.reason


def test_a_change_that_was_divided_by_the_rate_is_named() -> None:
    belief = FedAvg(steps=1, lr=0.02)
    for seed in range(3):
        model = model_of(seed)
        found = judged(sent(belief, model, seed) / 0.02, model, belief)
        assert found.factor is not None
        assert 50 / 1.5 < found.factor < 50 * 1.5
        assert "a change of weights that was divided by the learning rate" in found.reason


def test_a_factor_is_named_only_if_it_is_all_that_is_wrong() -> None:
    model, one_step = model_of(0), FedAvg(steps=1, lr=0.02)
    update = sent(one_step, model, 0)

    def factor(given: Update) -> float | None:
        return judged(given, model, one_step).factor

    assert factor(update) is None, "it is explained"
    assert 0.05 / 1.5 < (factor(update * 0.05) or 0) < 0.05 * 1.5
    assert factor(update * -8) is None, "its sign is wrong too"
    first = next(iter(update))
    one = Update({name: t * 8 if name == first else t for name, t in update.items()})
    assert factor(one) is None, "it is not in all tensors"
    negated = turned(observed(update * -8, model, one_step), swapped=False)
    assert 8 / 1.5 < (fit(negated, LABELS[:4], clients=20).factor or 0) < 8 * 1.5


def test_swapped_weights_are_turned_back() -> None:
    model = model_of(0)
    update = sent(LOCAL, model, 0)
    after = model.at({name: own + update[name] for name, own in model.parameters.items()})
    back = turned(observed(-update, after), swapped=True)
    for name, own in model.parameters.items():
        assert torch.equal(back.update[name], update[name])
        assert torch.allclose(back.model.parameters[name], own, rtol=0, atol=1e-6)


def _trained(model: Model) -> Model:
    return replace(model, module=copy.deepcopy(model.module).train())


def _noisy(update: Update) -> Update:
    std, rng = 0.1 * float(update.norm()) / update.numel**0.5, torch.Generator().manual_seed(0)
    return update.map(lambda tensor: tensor + std * torch.randn(tensor.shape, generator=rng))


OTHERS: dict[str, tuple[Callable[[Model, int], Update], str]] = {
    "Adam": (
        lambda m, s: sent(replace(LOCAL, optimizer=Adam(), lr=0.001), m, s),
        "Adam",
    ),
    "weight decay": (
        lambda m, s: sent(replace(LOCAL, optimizer=SGD(weight_decay=0.01)), m, s),
        "points along the weights",
    ),
    "momentum": (
        lambda m, s: sent(replace(LOCAL, optimizer=SGD(momentum=0.9)), m, s),
        "times too large in all tensors: another learning rate, number of steps or optimiser",
    ),
    "a third of the rate": (
        lambda m, s: sent(replace(LOCAL, lr=0.003), m, s),
        "times too small in all tensors: another learning rate",
    ),
    "more images": (
        lambda m, s: sent(replace(LOCAL, batch_size=4), m, s, 8),
        "",
    ),
    "batch norm in training": (lambda m, s: sent(LOCAL, _trained(m), s), ""),
    "the wrong sign": (lambda m, s: -sent(LOCAL, m, s), "too little in common"),
    "noise": (lambda m, s: _noisy(sent(LOCAL, m, s)), "more directions"),
    "compression": (
        lambda m, s: wrapped((Sparsify(rate=0.9),), LOCAL, 0)(
            m, m.parameters, m.buffers, images_of(s), LABELS[:4]
        ).detach(),
        "too many zeros",
    ),
    "the weights themselves": (
        lambda m, s: Update(dict(m.parameters)),
        "against the weights",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_client_is_not_explained(kind: str) -> None:
    make, told = OTHERS[kind]
    for seed in range(3):
        model = model_of(seed)
        found = judged(make(model, seed), model)
        assert not found.explained, (kind, found)
        assert told in found.reason
        assert str(found).startswith("not explained by what is assumed")
        assert "\n" not in str(found)


@pytest.mark.parametrize(
    "defense",
    [Noise(std=0.1), Clip(norm=0.1), Sparsify(rate=0.9), Soteria(rate=0.5), Hide(parts="head")],
)
def test_a_defence_that_is_believed_in_is_explained(defense: Defense) -> None:
    model = model_of(0)
    client = Client(model=model, grant_labels=True, defenses=(defense,))
    upload, secret = client.step(images_of(0), LABELS[:4])
    adaptive = observe(upload, defenses=(defense,))
    assert fit(adaptive, secret.labels, clients=20).explained
    if isinstance(defense, Noise | Sparsify):  # the others leave what clients may send
        static = observe(upload, attacker="static", defenses=(defense,))
        assert not fit(static, secret.labels, clients=20).explained


def test_quantisation_is_not_taken_for_the_gradient() -> None:
    model = model_of(1)
    client = Client(model=model, grant_labels=True, defenses=(Quantize(scheme="qsgd"),))
    upload, secret = client.step(images_of(1), LABELS[:4])
    assert not fit(observe(upload, attacker="static"), secret.labels, clients=20).explained


def test_a_model_without_a_linear_head() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 7), nn.Flatten()]
        model = Model(module=nn.Sequential(*layers))
    assert judged(sent(FedSGD(), model, 0), model, FedSGD()).explained
    assert not judged(-sent(FedSGD(), model, 0), model, FedSGD()).explained


def observation(seed: int = 0) -> Observation:
    model = model_of(seed)
    return observe(Client(model=model, grant_labels=True).step(images_of(seed), LABELS[:4])[0])


def test_the_same_seed_gives_the_same_answer() -> None:
    seen = observation()
    first, again = (fit(seen, LABELS[:4], clients=12, seed=5) for _ in range(2))
    assert first == again
    assert fit(seen, LABELS[:4], clients=12, seed=6) != first


def test_too_few_clients_are_refused() -> None:
    with pytest.raises(InputError, match="at least 10 simulated clients, got 9"):
        fit(observation(), LABELS[:4], clients=9)


def test_every_kind_of_statistic_has_words() -> None:
    for name in Kind.WORDS:
        high, low = (Kind(name, "fc.weight").told(higher) for higher in (True, False))
        assert high.startswith("'fc.weight' ")
        assert low.startswith("'fc.weight' ")


def test_unrelated_images_are_further_away_than_the_truth() -> None:
    seen = observation()
    measure = Measure(distance=Cosine())
    nulls = null_distances(seen, LABELS[:4], measure, count=5)
    assert list(nulls) == sorted(nulls)
    assert len(nulls) == 5
    replayed = seen.replay(images_of(0), LABELS[:4])
    assert float(Cosine()(seen.as_gradient(replayed), seen.gradient)) < 1e-5 < nulls[0]


def test_estimated_labels_do_not_refuse_an_honest_batch() -> None:
    for seed in range(4):
        model = model_of(seed)
        upload, _ = Client(model=model, protocol=LOCAL).step(images_of(seed), LABELS[:4])
        seen = observe(upload)
        assert fit(seen, clients=20).explained
        adam = replace(LOCAL, optimizer=Adam(), lr=0.001)
        assert not fit(replace(seen, update=sent(adam, model, seed)), clients=20).explained


def test_adam_of_one_image_is_explained_without_its_label() -> None:
    """Its update has no gradient's sizes, so these do not contradict that it is of one image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(module=ConvNet(5, width=8).eval())
    image = dead_leaves(1, (3, 16, 16), torch.Generator().manual_seed(3))
    client = Client(model=model, protocol=FedAvg(steps=1, lr=1e-3, optimizer=Adam()))
    upload, _ = client.step(image, torch.tensor([2]))
    found = fit(observe(upload))
    assert found.contradicted is None
    assert found.explained, found
    assert not fit(observe(upload)).but("its counters say 2 local steps, not 1").explained
