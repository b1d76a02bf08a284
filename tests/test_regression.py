"""The regression from the head's input: ridge, representation, initialiser."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.leakage.representation import observed_representations, representations
from gifd.model import Model
from gifd.priors import Generator
from gifd.search import Latent, Phase, RankedDraws, Regression
from gifd.search.ridge import Ridge
from gifd.search.sources import moved
from gifd.victims import ConvNet

pytestmark = pytest.mark.numerical

Pictures = Callable[..., Tensor]


# -- the ridge -------------------------------------------------------------------------


def examples(seed: int, n: int, features: int, outputs: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=rng, dtype=torch.float64)
    y = x @ torch.randn(features, outputs, generator=rng, dtype=torch.float64) + 3
    return x, y + 0.5 * torch.randn(n, outputs, generator=rng, dtype=torch.float64)


def solve(z: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normal equations of a ridge with a free intercept: weight, and the two means."""
    centre, offset = z.mean(0), y.mean(0)
    zc = z - centre
    eye = torch.eye(z.shape[1], dtype=z.dtype)
    return torch.linalg.solve(zc.T @ zc + strength * eye, zc.T @ (y - offset)), centre, offset


@given(st.integers(0, 10_000), st.integers(4, 12), st.integers(1, 15))
def test_the_error_is_that_of_leaving_one_out(seed: int, n: int, features: int) -> None:
    x, y = examples(seed, n, features)
    ridge = Ridge.fit(x, y)
    z = (x - ridge.mean) / ridge.std
    weight, _, _ = solve(z, y, ridge.strength)
    assert torch.allclose(ridge.weight, weight, atol=1e-6)
    errors = []
    for i in range(n):
        left = [j for j in range(n) if j != i]
        weight, centre, offset = solve(z[left], y[left], ridge.strength)
        errors.append(((z[i] - centre) @ weight + offset - y[i]).square())
    assert ridge.error == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_a_line_is_found_and_a_constant_input_ignored() -> None:
    x, _ = examples(0, 40, 5)
    x[:, 2] = 7.0
    y = 2 * x[:, :1] - x[:, 1:2] + 4
    ridge = Ridge.fit(x, y)
    new, _ = examples(1, 6, 5)
    assert torch.allclose(ridge(new), 2 * new[:, :1] - new[:, 1:2] + 4, atol=1e-3)
    assert ridge(new.float()).dtype == torch.float32


def test_noise_is_hardly_believed() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 40, generator=rng), torch.randn(60, 30, generator=rng)
    ridge = Ridge.fit(x, y)
    plain = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    assert float(ridge(x).var()) < 0.1 * float(((x - x.mean(0)) @ plain).var())
    assert ridge.error < 1.05 * float(y.var(0).mean()) * 60 / 59


def test_a_ridge_wants_examples() -> None:
    with pytest.raises(InputError, match="at least 3 examples"):
        Ridge.fit(torch.zeros(2, 2), torch.zeros(2, 1))


# -- what entered the head -----------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=1, lr=0.1)], ids=repr)
def test_one_image_shows_what_entered_the_head(
    pictures: Pictures,
    seeded: Callable[[int, Callable[[], nn.Module]], nn.Module],
    protocol: Protocol,
    bias: bool,
) -> None:
    module = seeded(0, lambda: ConvNet(4, width=4)).double()
    if not bias:
        module.get_submodule("fc").register_parameter("bias", None)
    model, image = Model(module=module), pictures(3, side=16).double()
    observation = observe(Client(model=model, protocol=protocol).step(image, torch.tensor([2]))[0])
    seen = observed_representations(observation, torch.tensor([2])).directions
    assert torch.allclose(seen, representations(model, image), atol=1e-9)
    other = representations(model, pictures(4, side=16).double())
    assert not torch.allclose(seen, other, atol=1e-2)


def test_images_with_labels_of_their_own_show_theirs_best(
    victim: Model, pictures: Pictures
) -> None:
    images, labels = pictures(3, 3, 16), torch.tensor([2, 0, 3])
    observation = observe(Client(model=victim, grant_labels=True).step(images, labels)[0])
    seen = observed_representations(observation, labels).directions
    own = representations(victim, images)
    centre = own.mean(0)
    likeness = torch.cosine_similarity((seen - centre)[:, None], (own - centre)[None], dim=2)
    assert likeness.argmax(1).tolist() == [0, 1, 2]


def test_a_victim_without_a_linear_head_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(ModelError, match="switch the extension 'regression' off"):
        representations(Model(module=module), torch.zeros(1, 3, 8, 8))


def test_a_head_fed_more_than_a_vector_is_named() -> None:
    module = nn.Linear(8, 4)
    with pytest.raises(ModelError, match="one vector per image"):
        representations(Model(module=module), torch.zeros(1, 3, 8, 8))


# -- the phase -----------------------------------------------------------------------------


@pytest.fixture
def prior() -> Generator:
    """Blurs of 4 x 4 colours, 16 px: simple enough for a linear regression."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        coarse = nn.Sequential(nn.Linear(24, 3 * 16), nn.Tanh(), nn.Unflatten(1, (3, 4, 4)))
    return Generator([coarse, nn.Upsample(size=16, mode="bilinear")], latent=(24,))


def attack(prior: Generator, *, steps: int, restarts: int = 2) -> Attack:
    begin = Regression(evaluations=steps - 1)
    phase = Phase(name="regression", space=Latent(), steps=1, begin=begin)
    return Attack(name="test", reference="none", phases=(phase,), restarts=restarts, prior=prior)


def observed(victim: Model, prior: Generator, seed: int) -> tuple[Observation, Tensor]:
    image = prior.sample(1, seed=seed)
    return observe(Client(model=victim).step(image, torch.tensor([2]))[0]), image


def test_the_guess_is_better_than_the_best_draw(
    pictures: Pictures,
    seeded: Callable[[int, Callable[[], nn.Module]], nn.Module],
    prior: Generator,
) -> None:
    """For images of the prior, with as many samples as random search has draws."""
    victim = Model(module=seeded(0, lambda: ConvNet(4, width=16)))
    gains = []
    for seed in range(4):
        observation, image = observed(victim, prior, seed + 50)
        guessing = attack(prior, steps=34, restarts=1)
        draws = RankedDraws(evaluations=10 * 33)
        drawing = dataclasses.replace(
            guessing, phases=(dataclasses.replace(guessing.phases[0], begin=draws),)
        )
        errors = [
            float((a(observation).images - image).square().mean()) for a in (guessing, drawing)
        ]
        gains.append(10 * math.log10(errors[1] / errors[0]))
    assert sum(gains) / 4 > 3, gains  # dB


def test_it_is_charged_for_every_step_and_each_restart_guesses_alone(
    victim: Model, prior: Generator
) -> None:
    observation, _ = observed(victim, prior, 0)
    run = attack(prior, steps=8, restarts=3)
    found = run(observation, seed=1)
    assert found.evaluations == run.planned_evaluations == 24
    assert len(set(found.phases[0].curve[-1])) == 3
    assert torch.equal(run(observation, seed=1).images, found.images)
    assert not torch.equal(run(observation, seed=2).images, found.images)


def test_without_samples_it_keeps_the_draw(victim: Model, prior: Generator) -> None:
    observation, _ = observed(victim, prior, 0)
    found = attack(prior, steps=1, restarts=1)(observation, seed=3)
    assert torch.allclose(found.images, prior.sample(1, seed=3), atol=1e-6)


def test_a_batch_is_guessed_image_by_image(victim: Model, prior: Generator) -> None:
    images, labels = prior.sample(2, seed=7), torch.tensor([1, 3])
    observation = observe(Client(model=victim, grant_labels=True).step(images, labels)[0])
    found = attack(prior, steps=30, restarts=1)(observation).images
    own = (found - images).square().mean((1, 2, 3))
    other = (found - images.flip(0)).square().mean((1, 2, 3))
    assert (own < other).all()


@pytest.mark.parametrize("shift", [0.0, 0.13, 0.25])
def test_samples_are_moved_evenly_and_no_farther_than_asked(shift: float) -> None:
    image = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    many = image.expand(2000, -1, -1, -1)
    shifted = moved(many, shift, torch.Generator().manual_seed(1))
    assert shifted.shape == many.shape
    down, right = int(shift * 8), int(shift * 16)
    padded = F.pad(image, (right, right, down, down), mode="reflect")[0]
    places = [
        padded[:, top : top + 8, left : left + 16]
        for top in range(2 * down + 1)
        for left in range(2 * right + 1)
    ]
    counts = [int((shifted == place).flatten(1).all(1).sum()) for place in places]
    assert sum(counts) == 2000, "it is at one of these places"
    assert min(counts) > 0.4 * 2000 / len(places)


@pytest.mark.parametrize("settings", [{"evaluations": -1}, {"fit": 0}, {"lr": 0.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected a regression"):
        Regression(**settings)  # type: ignore[arg-type]
