"""Regularisers, and the optimisers of the papers."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observation import Ledger
from gifd.attacker.observe import observe
from gifd.batch_norm import batch_statistics, running_statistics
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.model import Model
from gifd.search import (
    LBFGS,
    Adam,
    BatchNormPrior,
    Candidate,
    Comparison,
    Constant,
    GradientRegularized,
    GroupConsistency,
    L1Ball,
    LatentDivergence,
    Optimizer,
    PartialMatching,
    Sphere,
)
from gifd.search.evaluation import Evaluated
from gifd.search.keeping import Kept
from gifd.search.registration import aligned
from gifd.search.step import Moving, step
from gifd.updates import Update
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

Pictures = Callable[..., Tensor]
Seeded = Callable[[int, Callable[[], nn.Module]], nn.Module]


# -- batch norm ----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_statistics_are_those_of_hooks(
    seeded: Seeded, pictures: Pictures, training: bool
) -> None:
    module = seeded(0, lambda: ConvNet(4, width=4)).train(training)
    model = Model(module=module)
    images = pictures(2, 3, 16)
    seen: list[Tensor] = []
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [n.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for n in norms]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        model.logits(model.parameters, model.buffers, images)
    for hook in hooks:
        hook.remove()
    found = batch_statistics(model, images)
    assert len(found) == len(norms) == 4
    for own, fed in zip(found, seen, strict=True):
        channels = [fed[:, c].flatten() for c in range(fed.shape[1])]
        assert own.mean.tolist() == pytest.approx([float(c.mean()) for c in channels], abs=1e-5)
        assert own.variance.tolist() == pytest.approx(
            [float(c.var(correction=0)) for c in channels], abs=1e-5
        )
    assert all(torch.equal(buffers[name], b) for name, b in module.named_buffers())


def test_running_statistics_are_the_models(seeded: Seeded, pictures: Pictures) -> None:
    module = seeded(0, lambda: ConvNet(4, width=4))
    with torch.no_grad():
        module.train()(pictures(1, 5, 16))
    module.eval()
    kept = running_statistics(Model(module=module), (3, 16, 16))
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for own, norm in zip(kept, norms, strict=True):
        assert torch.equal(own.mean, torch.as_tensor(norm.running_mean))
        assert torch.equal(own.variance, torch.as_tensor(norm.running_var))
    forgetful = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 2)
    )
    with pytest.raises(ModelError, match="do not grant them"):
        running_statistics(Model(module=forgetful), (3, 8, 8))


def test_the_truth_has_the_granted_statistics(victim: Model, pictures: Pictures) -> None:
    images, labels = pictures(3, 2, 16), torch.tensor([0, 1])
    penalty = BatchNormPrior(weight=2.0)
    for grant in ("batch", "running", None):
        client = Client(model=victim, grant_labels=True, grant_batch_norm=grant)
        observation = observe(client.step(images, labels)[0])
        assert observation.grants()["batch_norm"] == grant
        inputs = victim.normalize(images)
        granted = Comparison(observation).target.statistics
        seen = Candidate(inputs=inputs, model=victim, statistics=granted)
        value = float(penalty(seen))
        blurred = inputs.mean((2, 3), keepdim=True).expand_as(inputs)
        worse = float(penalty(dataclasses.replace(seen, inputs=blurred)))
        if grant == "batch":
            assert value < 1e-4 < worse
            assert worse == pytest.approx(by_hand(victim, blurred, observation.ledger))
        if grant is None:
            assert (value, worse) == (0, 0)
        if grant == "running":
            assert value > 0
    with pytest.raises(InputError, match="together with their source"):
        Ledger(image_shape=(3, 8, 8), batch_size=1, batch_norm_source="batch")


def by_hand(model: Model, inputs: Tensor, ledger: Ledger) -> float:
    total = 0.0
    shown = batch_statistics(model, model.denormalize(inputs))
    for index, (own, target) in enumerate(zip(shown, ledger.batch_norm or (), strict=True)):
        away = float((own.mean - target.mean).norm() + (own.variance - target.variance).norm())
        total += away * (10 if index == 0 else 1)
    return 2.0 * total


# -- the group -----------------------------------------------------------------------------


@given(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 100))
def test_a_shifted_picture_is_moved_back(down: int, right: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, 16, 16, generator=rng)
    assert torch.equal(aligned(torch.roll(image, (down, right), (-2, -1)), image), image)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 32), (32, 16)])
@pytest.mark.parametrize("axis", [-2, -1])
def test_what_is_too_far_is_left_in_place(axis: int, height: int, width: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    side = image.shape[axis]
    for shift in (side // 8 + 1, -side // 8 - 1, side // 2 - 1):
        far = torch.roll(image, shift, axis)
        assert torch.equal(aligned(far, image), far)
    assert torch.equal(aligned(torch.roll(image, side // 8, axis), image), image)


def test_the_group_is_the_mean_of_what_was_moved_into_place() -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=rng)
    restarts = torch.stack([image, image, image, torch.roll(image, 2, -1)])
    group = GroupConsistency(weight=1.0)
    assert torch.allclose(group.mean(restarts), image, atol=1e-6)
    plain = GroupConsistency(weight=1.0, register=False).mean(restarts)
    assert torch.allclose(plain, restarts.mean(0))
    assert torch.equal(group.mean(restarts[3:]), restarts[3])
    away = group(Candidate(inputs=image + 0.5, group=image))
    assert float(away) == pytest.approx(0.5 * math.sqrt(3 * 256) / 256, rel=1e-4)
    assert float(group(Candidate(inputs=image))) == 0
    inputs = image.clone().requires_grad_()
    value = group(Candidate(inputs=inputs, group=image))
    assert torch.autograd.grad(value, inputs)[0].abs().max() == 0


def test_the_group_meets_when_it_is_due() -> None:
    group = GroupConsistency(weight=1.0, begin=0.25, every=0.1)
    assert [step for step in range(40) if group.due(step, 40)] == [10, 14, 18, 22, 26, 30, 34, 38]
    with pytest.raises(InputError, match="shares of a phase"):
        GroupConsistency(weight=1.0, every=0.0)


# -- the latent ----------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_normals() -> None:
    latent = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = LatentDivergence(weight=0.5)(
        Candidate(inputs=torch.zeros(1, 1, 1, 1), state={"x": latent})
    )
    expected = 0.0
    for row in latent:
        own = torch.distributions.Normal(row.mean(), row.std(correction=0))
        standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        expected += float(torch.distributions.kl_divergence(own, standard))
    assert float(value) == pytest.approx(0.5 * expected, rel=1e-6)


# -- matching a part -----------------------------------------------------------------------


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 1.0]))
def test_partial_matching_uses_the_largest_only(seed: int, share: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    u = {"a": torch.randn(3, 7, generator=rng), "b": torch.randn(11, generator=rng)}
    v = {name: torch.randn(t.shape, generator=rng) for name, t in u.items()}
    distance = PartialMatching(share=share)
    expected = 0.0
    for name, tensor in u.items():
        size = sorted(tensor.abs().flatten().tolist(), reverse=True)
        kept = tensor.abs() >= size[min(len(size), int(share * len(size)) + 1) - 1]
        first, second = tensor * kept, v[name] * kept
        cosine = torch.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        expected += float((first - second).abs().mean() + 1 - cosine)
    assert float(distance(Update(u), Update(v))) == pytest.approx(expected, rel=1e-4)
    assert float(distance(Update(u), Update(u))) == pytest.approx(0, abs=1e-5)
    with pytest.raises(InputError, match="share"):
        PartialMatching(share=0.0)


# -- optimisers ----------------------------------------------------------------------------


def bowl(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rosenbrock's function for each search (N, R, 2): gradient and value."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        values = (1 - x[..., 0]).square() + 5 * (x[..., 1] - x[..., 0] ** 2).square()
    return torch.autograd.grad(values.sum(), x)[0], values.detach()


def moved(rule: Optimizer, x: Tensor, steps: int) -> Tensor:
    memory = rule.init(x, steps)
    for _ in range(steps):
        memory, x = rule.step(memory, x, *bowl(x), None)
    return x


@pytest.mark.parametrize("history", [3, 100])
def test_lbfgs_is_that_of_pytorch(history: int) -> None:
    starts = torch.tensor([[[-1.0, 1.5], [0.3, -0.4]], [[2.0, 2.0], [1.0, 1.0]]]).double()
    found = moved(LBFGS(lr=0.5, history=history), starts, 40)
    for start, end in zip(starts.flatten(0, 1), found.flatten(0, 1), strict=True):
        leaf, first = start.clone().requires_grad_(), float(bowl(start)[1])
        scale = 1 / first if first > 0 else 1.0
        solver = torch.optim.LBFGS([leaf], lr=0.5, max_iter=20, history_size=history)

        def closure(leaf: Tensor = leaf, scale: float = scale) -> float:
            slope, value = bowl(leaf)
            leaf.grad = slope * scale
            return float(value * scale)

        for _ in range(2):
            solver.step(closure)  # type: ignore[no-untyped-call]
        assert torch.allclose(end, leaf.detach(), atol=1e-6)


def test_a_search_of_lbfgs_that_arrived_does_not_move() -> None:
    bottom = torch.ones(1, 1, 2).double()
    assert torch.equal(moved(LBFGS(), bottom, 5), bottom)


def test_a_flat_valley_is_preferred_by_two_gradients() -> None:
    """One step by hand: AdamW on the mixed signs, with moments updated by the probe too."""
    start = torch.tensor([[[-1.0, 1.5]]], dtype=torch.float64)
    x = moved(GradientRegularized(lr=0.1, schedule=Constant(), share=0.3), start, 2)
    leaf = start.clone().requires_grad_()
    adam = torch.optim.AdamW([leaf], lr=0.1)
    leaf.grad = here = bowl(start)[0].sign()
    adam.step()
    ahead = bowl(leaf.detach())[0].sign()
    leaf.data.copy_(start)
    leaf.grad = 0.7 * here + 0.3 * ahead
    adam.step()
    assert torch.allclose(x, leaf.detach(), atol=1e-12)


@pytest.mark.parametrize(
    "rule", [Adam(), Adam(noise=0.1), LBFGS(), GradientRegularized()], ids=repr
)
def test_a_step_reads_nothing_back_to_the_host(rule: Optimizer) -> None:
    """The whole step with constraints on the meta device, whose tensors have no values."""
    x = torch.zeros(2, 3, 12, device="meta")  # (N, R, M)

    def evaluate(x: Tensor, alive: Tensor) -> Evaluated:
        return Evaluated(x + 1, x[..., 0], x[..., 1])

    def limit(x: Tensor) -> Tensor:
        value = x.reshape(6, 1, 3, 4)  # (N * R, B, ...)
        for projection in (Sphere(each=True), L1Ball(radius=1.0), L1Ball(share=0.1)):
            value = projection(value, value)
        return value.reshape(x.shape)

    moving = Moving(x, rule.init(x, 4), torch.ones(2, 3, dtype=torch.bool, device="meta"))
    kept = Kept.nothing(x)
    for _ in range(4):
        moving, seen = step(moving, evaluate, rule, limit, x if rule.noisy else None)
        kept = kept.after(seen, "best")
        assert moving.x.shape == kept.x.shape == x.shape
        assert moving.alive.shape == kept.distance.shape == (2, 3)


def test_reading_back_would_be_seen() -> None:
    rates, count = torch.zeros(3, device="meta"), torch.zeros((), dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        rates[count]
