"""Each method does what its paper claims, on a small case."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifd import attacks
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, Preset
from gifd.attacks.presets import PRESETS
from gifd.federation.client import Client
from gifd.federation.secret import Secret
from gifd.metrics import MSE, PSNR
from gifd.model import Model
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.search import (
    CMAES,
    BatchNormPrior,
    Candidate,
    Comparison,
    DeepPrior,
    Draw,
    Latent,
    Phase,
    Pixels,
    SearchContext,
    Weights,
)
from gifd.victims import ConvNet, LeNet

Pictures = Callable[..., Tensor]
Seeded = Callable[[int, Callable[[], nn.Module]], nn.Module]


@pytest.fixture
def sigmoids(seeded: Seeded, pictures: Pictures) -> tuple[Observation, Secret]:
    """An update of DLG's LeNet, 8 px."""
    model = Model(module=seeded(0, lambda: LeNet(10, size=8)))
    upload, secret = Client(model=model).step(pictures(1, 1, 8), torch.tensor([3]))
    return observe(upload), secret


@pytest.fixture
def convolutions(seeded: Seeded, pictures: Pictures) -> tuple[Observation, Secret]:
    """An update of a ConvNet with batch norm, 32 px."""
    model = Model(module=seeded(0, lambda: ConvNet(10, width=8)), mean=(0.5,) * 3, std=(0.25,) * 3)
    upload, secret = Client(model=model).step(pictures(1, 1, 32), torch.tensor([3]))
    return observe(upload), secret


def drawn(seed: int) -> Generator:
    """A DCGAN of 16 px with random weights and increased contrast."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = dcgan_stages(latent=8, width=8, channels=3, doublings=2)
    return Generator(stages, latent=(8, 1, 1), image_range=(-0.02, 0.02))


@pytest.fixture
def prior() -> Generator:
    """A prior to search."""
    return drawn(0)


@pytest.fixture
def within(prior: Generator, victim: Model) -> tuple[Observation, Secret]:
    """An update of an image that the prior can show exactly."""
    upload, secret = Client(model=victim).step(prior.sample(1, seed=7), torch.tensor([2]))
    return observe(upload), secret


def error(images: Tensor, secret: Secret) -> float:
    return float(MSE()(images, secret.images))


@pytest.mark.parametrize("build", [attacks.dlg, attacks.idlg])
def test_dlg_recovers_image_and_label(
    build: Callable[..., Attack], sigmoids: tuple[Observation, Secret]
) -> None:
    observation, secret = sigmoids
    found = build(preset="paper").with_steps(300)(observation)
    assert error(found.images, secret) < 1e-4
    assert found.labels.tolist() == [3]


def test_dlg_needs_no_labels_of_a_batch(seeded: Seeded, pictures: Pictures) -> None:
    model = Model(module=seeded(0, lambda: LeNet(10, size=8)))
    observation = observe(Client(model=model).step(pictures(1, 2, 8), torch.tensor([3, 5]))[0])
    found = attacks.dlg(preset="paper").with_steps(300)(observation)
    assert sorted(found.labels.tolist()) == [3, 5]
    assert found.hypotheses == 1
    assert found.label_source == "searched"


def test_ig_recovers_a_picture(seeded: Seeded, pictures: Pictures) -> None:
    def network() -> nn.Module:
        first, second = nn.Conv2d(3, 16, 5, 2, 2), nn.Conv2d(16, 32, 5, 2, 2)
        head = nn.Linear(32 * 8 * 8, 10)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head)

    model = Model(module=seeded(0, network), mean=(0.5,) * 3, std=(0.25,) * 3)
    upload, secret = Client(model=model).step(pictures(1, 1, 32), torch.tensor([3]))
    observation = observe(upload)
    for preset in PRESETS[::2]:
        found = attacks.ig(preset=preset).with_steps(400)(observation)
        assert float(PSNR()(found.images, secret.images)) > 20


def test_gradinversion_is_led_by_the_statistics(
    convolutions: tuple[Observation, Secret],
) -> None:
    observation, secret = convolutions
    client = Client(model=observation.model, grant_batch_norm="batch")
    told = observe(client.step(secret.images, secret.labels)[0])
    assert told.grants()["batch_norm"] == "batch"
    assert observation.grants()["batch_norm"] is None
    attack = attacks.gradinversion(preset="paper", restarts=1).with_steps(100)
    model = observation.model

    def away(images: Tensor) -> float:
        granted = Comparison(told).target.statistics
        candidate = Candidate(inputs=model.normalize(images), model=model, statistics=granted)
        return float(BatchNormPrior(weight=1.0)(candidate))

    assert away(secret.images) < 1e-4
    assert away(attack(told).images) < 0.7 * away(attack(observation).images)


@pytest.mark.parametrize("preset", ["paper", "gifd-paper"])
def test_gias_goes_beyond_its_latent(preset: Preset, within: tuple[Observation, Secret]) -> None:
    observation, secret = within
    prior = drawn(1)  # not the one that drew it
    build = attacks.gias(prior, preset=preset, restarts=2).with_steps(90)
    latent, weights = build(observation).phases
    assert len(latent.restarts) == 2
    assert len(weights.restarts) == 1
    assert weights.distance < 0.7 * latent.distance
    assert error(weights.images, secret) < error(latent.images, secret)


def test_the_weights_begin_where_the_latent_ended(
    prior: Generator, within: tuple[Observation, Secret]
) -> None:
    observation, _ = within
    phases = (
        Phase(name="latent", space=Latent(), steps=3),
        Phase(name="weights", space=Weights(), steps=2),
        Phase(name="pixels", space=Pixels(), steps=1),
    )
    before = [weight.clone() for weight in prior.weights().values()]
    attack = Attack(name="mine", reference="", phases=phases, restarts=2, prior=prior)
    found = attack(observation)
    latent, weights, pixels = found.phases
    assert weights.curve[0] == pytest.approx([min(c) for c in zip(*latent.curve, strict=True)])
    assert pixels.curve[0] == pytest.approx([min(c) for c in zip(*weights.curve, strict=True)])
    after = prior.weights().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    batched = attack(observation, batched=True)
    assert batched.distance == pytest.approx(found.distance, rel=1e-3)


def test_ggl_finds_what_the_prior_can_show(prior: Generator, seeded: Seeded) -> None:
    model = Model(module=seeded(0, lambda: ConvNet(4, width=16)), mean=(0.5,) * 3, std=(0.25,) * 3)
    upload, secret = Client(model=model).step(prior.sample(1, seed=7), torch.tensor([2]))
    observation = observe(upload)
    attack = attacks.ggl(prior, preset="paper")
    (latent,) = attack.phases
    # the divergence holds the latent back; here the search itself is asked for
    free = dataclasses.replace(attack, phases=(dataclasses.replace(latent, regularizers=()),))
    found = free.with_steps(540)(observation)
    others = [error(prior.sample(1, seed=seed), secret) for seed in range(5)]
    assert error(found.images, secret) < 0.3 * min(others)


def test_fedleak_draws_the_picture(convolutions: tuple[Observation, Secret]) -> None:
    observation, secret = convolutions
    attack = attacks.fedleak(preset="paper")
    (phase,) = (dataclasses.replace(p, space=DeepPrior(width=16)) for p in attack.phases)
    attack = dataclasses.replace(attack, phases=(phase,)).with_steps(120)
    found = attack(observation, seed=1)  # seed 0 takes twice the steps
    assert attack.planned_evaluations == found.evaluations == 120
    first = found.phases[0].curve[0][0]
    assert found.distance < 0.6 * first
    grey = torch.full_like(secret.images, 0.5)
    assert error(found.images, secret) < 0.85 * error(grey, secret)


def drawn_by_hand(weights: dict[str, Tensor], noise: Tensor, sizes: int) -> Tensor:
    """FedLeak's network with batch norm as it is trained, slope 0.1, nearest upsampling."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), False, keepdim=True)
        scale, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        return torch.maximum(x, 0.1 * x)

    def layer(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    x = normed(F.conv_transpose2d(noise[:, :, None, None], *layer("first")), "norm")
    for size in range(sizes):
        if size:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for part in (0, 3):
            x = F.conv2d(x, *layer(f"blocks.{size}.{part}"), padding=1)
            x = normed(x, f"blocks.{size}.{part + 1}")
    return F.conv2d(x, *layer("last")).sigmoid()


@pytest.mark.parametrize(
    ("side", "widths"),
    [(8, [16, 16]), (32, [16] * 4), (64, [16] * 4 + [8]), (128, [16] * 4 + [8, 4])],
)
def test_fedleaks_network_is_narrower_where_it_is_large(
    side: int, widths: list[int], victim: Model
) -> None:
    """Two convolutions per size from 4 px: full width, half at 64 px, a quarter at 128 px.

    One network draws the whole batch; each restart has its own.
    """
    context = SearchContext(model=victim, generator=None, image_shape=(3, side, side), batch=2)

    def draw(seed: int) -> Draw:
        return Draw(restarts=3, rng=torch.Generator().manual_seed(seed))

    space = DeepPrior(width=16, noise=5)
    state = space.start(context, draw(0))
    convolutions = [t for n, t in state.items() if n.startswith("blocks") and t.ndim == 6]
    assert [t.shape[:3] for t in convolutions] == [(3, 1, w) for w in widths for _ in range(2)]
    assert state["first.weight"].shape == (3, 1, 5, 16, 4, 4)
    assert state["x"].shape == (3, 2, 5)
    shown = [space.images(context, {n: t[r] for n, t in state.items()}) for r in range(3)]
    assert all(images.shape == (2, 3, side, side) for images in shown)
    assert all(0 < float(images.min()) < float(images.max()) < 1 for images in shown)
    second = {name: tensor[1, 0] for name, tensor in state.items()}
    assert torch.allclose(shown[1], drawn_by_hand(second, state["x"][1], len(widths)), atol=1e-5)
    again = space.start(context, draw(1))
    for own, others in ((state, again), (again, state)):
        weights = own["first.weight"]
        assert not torch.allclose(weights[0], weights[1], atol=1e-3)
        assert not torch.allclose(weights, others["first.weight"], atol=1e-3)


# -- CMA-ES alone --------------------------------------------------------------------------


@pytest.mark.parametrize("diagonal", [1, 1024])
def test_cma_es_finds_the_middle_of_a_sphere(diagonal: int) -> None:
    centre, randomness = np.linspace(-1, 1, 10), torch.get_rng_state()
    for seed in range(3):
        rule = CMAES(population=10, diagonal=diagonal)
        strategy, best = rule.start(np.zeros(10), seed), np.inf
        for _ in range(200):
            asked = strategy.ask()
            told = [float(((candidate - centre) ** 2).sum()) for candidate in asked]
            strategy.tell(asked, told)
            best = min(best, *told)
        assert best < 1e-6
    assert torch.equal(torch.get_rng_state(), randomness)
