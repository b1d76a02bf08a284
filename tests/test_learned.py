"""Learning to invert: hashing, the loss of a batch, and the trained perceptron."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import Attack, lti
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.model import Model
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.search import Learned, Phase, Pixels, Public
from gifd.search.learned import Hashed, matched

seeds = st.integers(0, 2**31)
Pictures = Callable[..., Tensor]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attack(images: Tensor, **settings: float) -> Attack:
    given = {"evaluations": 134, "hidden": 64, "epochs": 60, "lr": 1e-2, **settings}
    begin = Learned(source=Public(images=images, shift=0.0), **given)  # type: ignore[arg-type]
    phase = Phase(name="learned", space=Pixels(), steps=1, begin=begin)
    return Attack(name="one", reference="", phases=(phase,), restarts=1)


def test_hashing_is_linear_and_keeps_short_updates(victim: Model, pictures: Pictures) -> None:
    images, labels = pictures(0, 1, 16), torch.tensor([1])
    observation = observe(Client(model=victim).step(images, labels)[0])
    size = observation.update.numel
    whole = Hashed(observation, labels, size, rng(0))
    assert torch.equal(whole.observed, torch.cat([t.flatten() for t in observation.update.tensors]))
    torch.testing.assert_close(whole(images), whole.observed, rtol=1e-4, atol=1e-6)
    short = Hashed(observation, labels, 50, rng(0))
    assert short.observed.shape == (50,)
    torch.testing.assert_close(short.observed.sum(), whole.observed.sum(), rtol=1e-3, atol=1e-4)


def test_hashed_members_are_as_noisy_as_the_update(victim: Model, pictures: Pictures) -> None:
    images, labels = pictures(0, 1, 16), torch.tensor([1])
    client = Client(model=victim, defenses=(catalog.defense("noise:std=0.5"),))
    observation = observe(client.step(images, labels)[0], defenses=client.defenses)
    hashed = Hashed(observation, labels, 40, rng(0))
    many = torch.stack([hashed(images) for _ in range(200)])
    expected = 0.5 * (observation.update.numel / 40) ** 0.5
    assert float(many.std(0).mean()) == pytest.approx(expected, rel=0.1)
    clean = Hashed(observe(client.step(images, labels)[0], attacker="static"), labels, 40, rng(0))
    assert torch.equal(clean(images), clean(images))


@given(seed=seeds, same=st.booleans())
def test_images_of_one_label_are_exchanged_and_no_others(seed: int, same: bool) -> None:
    found = torch.rand(4, 3 * 5, generator=rng(seed))
    images = torch.rand(4, 3, 5, generator=rng(seed + 1))[..., None, None]
    labels = torch.tensor([0, 1, 0 if same else 2])
    orders = [
        order
        for order in itertools.permutations(range(3))
        if torch.equal(labels[list(order)], labels)
    ]
    each = torch.stack(
        [
            (found.view(4, 3, 5)[:, list(order)] - images.flatten(2)).square().mean((1, 2))
            for order in orders
        ]
    )
    expected = each.min(0).values.mean()
    torch.testing.assert_close(matched(found, images, labels[:, None] != labels), expected)


def test_a_trained_network_is_nearer_than_the_mean(victim: Model, pictures: Pictures) -> None:
    one, other = pictures(0, 1, 16), pictures(1, 1, 16)
    share = torch.rand(400, 1, 1, 1, generator=rng(0))
    share[0] = 0.9
    public = share * one + (1 - share) * other
    truth, learnt = public[:1], public[1:]
    upload, _ = Client(model=victim).step(truth, torch.tensor([2]))
    found = attack(learnt)(observe(upload)).images
    error = float((found - truth).square().mean())
    assert error < 0.3 * float((learnt.mean(0) - truth).square().mean())


def test_a_batch_comes_in_the_order_of_its_labels(victim: Model, pictures: Pictures) -> None:
    dark, light = pictures(0, 1, 16) * 0.3, pictures(1, 1, 16) * 0.3 + 0.7
    public = torch.cat([dark, light]).repeat(100, 1, 1, 1)
    public = (public + 0.05 * torch.randn(public.shape, generator=rng(0))).clamp(0, 1)
    images, labels = torch.cat([light, dark]), torch.tensor([3, 1])
    upload, _ = Client(model=victim, grant_labels=True).step(images, labels)
    found = attack(public)(observe(upload)).images
    own, other = ((found - each).square().mean((1, 2, 3)) for each in (images, images.flip(0)))
    assert bool((own < other).all())


def test_the_papers_settings() -> None:
    with torch.random.fork_rng(devices=[]):
        stages = dcgan_stages(latent=8, width=8, channels=3, doublings=2)
    prior = Generator(stages, latent=(8, 1, 1))
    (phase,) = lti(prior, preset="paper").phases
    begin = phase.begin
    assert isinstance(begin, Learned)
    assert (begin.hidden, begin.epochs, begin.lr, begin.AT_ONCE) == (3000, 200, 1e-4, 256)


@pytest.mark.parametrize("setting", ["evaluations", "hidden", "inputs", "epochs", "fit", "lr"])
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(InputError, match="expected a network"):
        Learned(**{setting: 0})  # type: ignore[arg-type]
