"""Label counts: exact if a method's assumption holds, close if it nearly does."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.defenses import Hide
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.leakage.counts import (
    AuxiliaryLeastSquares,
    ClassEmbeddings,
    ClassMeans,
    Distinct,
    DummyMean,
    HeadGradient,
    Impact,
    LabelEstimate,
    LabelEstimator,
)
from gifd.leakage.labels import label_hypotheses
from gifd.model import Model
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

Seeded = Callable[[int, Callable[[], nn.Module]], nn.Module]
Pictures = Callable[..., Tensor]

CLASSES = 6


def observed(
    module: nn.Module, labels: list[int], protocol: Protocol | None = None, seed: int = 0
) -> Observation:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(len(labels), 3, 16, 16, generator=rng)
    client = Client(model=Model(module=module), protocol=protocol or FedSGD())
    return observe(client.step(images, torch.tensor(labels))[0])


def blind(*, bias: bool = True) -> nn.Module:
    """A network whose head gives every image the same logits: p is known, S varies little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(8, CLASSES, bias=bias)
        with torch.no_grad():
            head.weight.zero_()
            if bias:
                head.bias.copy_(torch.linspace(-1, 1, CLASSES))
        body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(body, nn.Flatten(), head).eval()


def auxiliary(seed: int = 9) -> AuxiliaryLeastSquares:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(8)
    return AuxiliaryLeastSquares(images=torch.rand(48, 3, 16, 16, generator=rng), labels=labels)


def counts(labels: list[int]) -> list[int]:
    return [labels.count(i) for i in range(CLASSES)]


@given(
    st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=20),
    st.sampled_from([FedSGD(), FedAvg(steps=1, lr=0.1)]),
)
def test_counts_are_exact_where_every_image_has_the_same_logits(
    labels: list[int], protocol: Protocol
) -> None:
    """Repeats, and more images than classes, included."""
    observation = observed(blind(), labels, protocol)
    for estimator in (DummyMean(), ClassEmbeddings(), auxiliary()):
        found = estimator(observation)
        assert found.counts.tolist() == counts(labels), estimator
        assert found.labels.tolist() == sorted(labels)
        assert float(found.confidence.min()) > 0.95


@given(st.sets(st.integers(0, CLASSES - 1), min_size=1))
def test_distinct_labels_are_read_behind_a_relu(labels: set[int]) -> None:
    """If no class is likelier than its share of the batch, as in an untrained model."""
    observation = observed(blind(bias=False), sorted(labels))
    assert set(Distinct()(observation).labels.tolist()) == labels


def test_impact_counts_repeats_among_many_classes(seeded: Seeded) -> None:
    """Its assumption: the batch contains few of the classes."""
    module = seeded(0, lambda: ConvNet(60, width=8))
    labels = [3, 3, 3, 17, 17, 41]
    assert Impact()(observed(module, labels)).labels.tolist() == labels


@pytest.mark.parametrize(
    "estimator",
    [Distinct(), DummyMean(), ClassEmbeddings(), ClassMeans(), auxiliary()],
    ids=repr,
)
@pytest.mark.parametrize("batch", [1, 4])
def test_every_estimator_reads_an_untrained_network(
    estimator: LabelEstimator, batch: int, seeded: Seeded
) -> None:
    labels = [1, 4, 5, 0][:batch]
    module = seeded(0, lambda: ConvNet(CLASSES, width=8))
    found = estimator(observed(module, labels))
    assert found.labels.tolist() == sorted(labels)
    assert int(found.counts.sum()) == batch


@pytest.mark.parametrize(
    "estimator", [DummyMean(), ClassEmbeddings(), ClassMeans(), auxiliary()], ids=repr
)
def test_repeats_in_a_large_batch_are_counted(estimator: LabelEstimator, seeded: Seeded) -> None:
    labels = [0] * 9 + [2] * 5 + [3] * 1 + [5] * 9
    module = seeded(0, lambda: ConvNet(CLASSES, width=8))
    found = estimator(observed(module, labels))
    wrong = sum(abs(a - b) for a, b in zip(found.counts.tolist(), counts(labels), strict=True)) / 2
    assert wrong <= 1


@given(st.lists(st.floats(-2, 9), min_size=2, max_size=7), st.integers(1, 12))
def test_rounding_is_the_nearest_that_sums_to_the_batch(shares: list[float], batch: int) -> None:
    found = LabelEstimate.of(torch.tensor(shares), batch)
    assert int(found.counts.sum()) == batch
    assert int(found.counts.min()) >= 0
    cost = (found.shares - found.counts).square()
    for i in range(len(shares)):
        for j in range(len(shares)):
            if i != j and found.counts[j] > 0:
                moved = found.counts.clone()
                moved[i] += 1
                moved[j] -= 1
                assert float((found.shares - moved).square().sum()) >= float(cost.sum()) - 1e-6


@given(
    st.lists(st.floats(-1, 5), min_size=2, max_size=6),
    st.integers(1, 8),
    st.integers(1, 6),
    st.integers(0, 100),
)
def test_hypotheses_are_the_likeliest_labellings(
    shares: list[float], batch: int, most: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    present = torch.rand(len(shares), generator=rng) < 0.3
    found = LabelEstimate.of(torch.tensor(shares), batch, present)
    several = found.hypotheses(most)
    assert several.shape[1] == batch
    assert 1 <= len(several) <= most
    assert several[0].tolist() == found.labels.tolist()
    totals = torch.stack([torch.bincount(h, minlength=len(shares)) for h in several])
    assert len({tuple(t) for t in totals.tolist()}) == len(several), "no counts twice"
    deviations = (found.shares - totals).square().sum(1)
    assert torch.equal(deviations, deviations.sort().values) or deviations.diff().min() > -1e-9
    if int(present.sum()) <= batch:
        assert bool((totals[:, present] >= 1).all())


def test_whole_shares_leave_no_doubt_and_halves_do() -> None:
    sure = LabelEstimate.of(torch.tensor([2.0, 0.1, 0.9]), 3)
    assert sure.hypotheses(9).tolist() == [[0, 0, 2]]
    torn = LabelEstimate.of(torch.tensor([1.6, 0.5, 0.9]), 3)
    assert torn.hypotheses(9).tolist() == [[0, 0, 2], [0, 1, 2], [0, 0, 1]]
    assert torn.hypotheses(1).tolist() == [[0, 0, 2]]


def test_what_does_not_apply_is_named(seeded: Seeded) -> None:
    observation = observed(blind(bias=False), [1] * 7)
    with pytest.raises(InputError, match="at most 6 images"):
        Distinct()(observation)
    with pytest.raises(InputError, match="with a bias"):
        ClassEmbeddings()(observation)
    few = AuxiliaryLeastSquares(images=torch.rand(2, 3, 16, 16), labels=torch.tensor([0, 3]))
    with pytest.raises(InputError, match=r"none of \[1, 2, 4, 5\]"):
        few(observation)
    with pytest.raises(ModelError, match="last layer is linear"):
        HeadGradient.of(observed(nn.Sequential(nn.Conv2d(3, 5, 16), nn.Flatten()), [1]))


@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([1, 3]))
def test_a_negative_bias_gradient_means_the_class_is_there(
    seed: int, batch: int, steps: int
) -> None:
    """For any network: here with random weights and large logits."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(72, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    labels = torch.randint(5, (batch,), generator=rng).tolist()
    observation = observed(module, labels, FedAvg(steps=steps, lr=1e-4), seed)
    present = HeadGradient.of(observation).present
    assert present is not None
    assert set(present.nonzero().flatten().tolist()) <= set(labels)
    for estimator in (DummyMean(), ClassEmbeddings()):
        found = estimator(observation)
        assert bool((found.counts[present] >= 1).all())
        assert int(found.counts.sum()) == batch


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_own_images_see_what_local_steps_change(
    momentum: float, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with a learning rate so high that its last gradients hardly show its labels."""
    labels = [0] * 5 + [2] * 2 + [3]
    protocol = FedAvg(steps=8, lr=0.3, optimizer=SGD(momentum=momentum))
    module = seeded(0, lambda: ConvNet(CLASSES, width=8))
    observation = observed(module, labels, protocol)

    def wrong(estimator: LabelEstimator) -> float:
        found = estimator(observation).shares
        return float((found - torch.tensor(counts(labels))).abs().sum())

    near = wrong(auxiliary())
    assert auxiliary()(observation).counts.tolist() == counts(labels)
    monkeypatch.setattr(FedAvg, "visited", Protocol.visited)  # as though all were at the start
    assert near < 0.7 * wrong(auxiliary())


@given(
    st.integers(0, CLASSES - 1),
    st.sampled_from(["head", "fc.weight", "fc.bias", "fc+body.3"]),
    st.sampled_from([FedSGD(), FedAvg(steps=2, lr=0.01)]),
)
@settings(max_examples=6)
def test_a_label_is_read_without_the_head(label: int, parts: str, protocol: Protocol) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(CLASSES, width=8).eval()
    hide = Hide(parts=parts)
    client = Client(model=Model(module=module), protocol=protocol, defenses=(hide,))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(label))
    upload, _ = client.step(images, torch.tensor([label]))
    observation = observe(upload, defenses=(hide,))
    assert ClassMeans()(observation).labels.tolist() == [label]
    assert label_hypotheses(observation)[0].tolist() == [[label]]


def test_what_does_not_depend_on_labels_shows_none(seeded: Seeded) -> None:
    module = seeded(0, lambda: ConvNet(CLASSES, width=8))
    model = Model(module=module, loss=lambda logits, labels: logits.square().mean())
    upload, _ = Client(model=model).step(torch.rand(1, 3, 16, 16), torch.tensor([1]))
    with pytest.raises(ModelError, match="depends on the labels"):
        ClassMeans()(observe(upload))
