"""Ensembles: sketches, signatures, kernel ridge, and the rounds of the attack."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import Attack, ensemble
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.federation.protocols import FedAvg
from gifd.model import Model
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.search import Ensemble, Leaves, Phase, Pixels, Public, Samples, SearchContext
from gifd.search.kernel_ridge import KernelRidge
from gifd.search.signatures import Signatures, away
from gifd.search.sketch import Sketch
from gifd.victims import ConvNet

seeds = st.integers(0, 2**31)
Pictures = Callable[..., Tensor]


@pytest.fixture(scope="module")
def prior() -> Generator:
    """A DCGAN of 16 px with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(dcgan_stages(latent=8, width=8, channels=3, doublings=2), latent=(8, 1, 1))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- sketch ------------------------------------------------------------------------------------


def test_a_sketch_is_linear_and_keeps_small_tensors_noise_and_inner_products() -> None:
    like = {"wide": torch.empty(128, 256, 3, 3), "head": torch.empty(10, 64)}
    sketch = Sketch(like, rng(0))
    one, other = (
        {n: torch.randn(t.shape, generator=rng(s)) for n, t in like.items()} for s in (1, 2)
    )
    wide, head = sketch(one)
    assert torch.equal(head, one["head"].flatten())
    assert wide.numel() <= Sketch.MOST
    assert float(wide.std()) == pytest.approx(1, abs=0.03), "independent noise"
    both = sketch({name: one[name] + 2 * other[name] for name in like})
    torch.testing.assert_close(both[0], wide + 2 * sketch(other)[0], rtol=1e-4, atol=1e-4)
    near = {name: one[name] + 0.3 * other[name] for name in like}
    cosine = torch.cosine_similarity(wide, sketch(near)[0], dim=0)
    assert float(cosine) == pytest.approx(1 / (1 + 0.3**2) ** 0.5, abs=0.02)


# -- signatures --------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A strided convolution with bias, one without and a norm, dilation, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 120, 3, 1, 2, 2, bias=False)
        self.norm, self.hidden, self.head = (
            nn.BatchNorm2d(120),
            nn.Linear(120, 90),
            nn.Linear(90, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.two(torch.relu(self.one(x)))))
        logits: Tensor = self.head(torch.relu(self.hidden(x.mean((2, 3)))))
        return logits


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("victim", ["mixed", "convnet"])
def test_signatures_of_one_pass_are_those_of_the_replays(
    batch: int, victim: str, seeded: Callable[..., nn.Module], pictures: Pictures
) -> None:
    module = seeded(0, Mixed if victim == "mixed" else lambda: ConvNet(5, width=8))
    model, labels = Model(module=module.double()), torch.arange(batch)
    upload, _ = Client(model=model, grant_labels=True).step(pictures(0, batch, 16), labels)
    one, other = (Signatures(observe(upload), labels, rng(3)) for _ in range(2))
    members = torch.stack([pictures(s, batch, 16) for s in range(5)]).double()
    other._fast = False
    for fast, slow in zip(one(members), other(members), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-8)
    assert one._fast
    for seen, own in zip(one.observed, one(pictures(0, batch, 16)[None]), strict=True):
        torch.testing.assert_close(own[0], seen, rtol=1e-4, atol=1e-7)
    assert away(one.observed, one.observed, one.observed) == 0


def test_updates_of_several_steps_are_replayed(victim: Model, pictures: Pictures) -> None:
    client = Client(model=victim, protocol=FedAvg(steps=3, lr=0.1))
    upload, _ = client.step(pictures(0, 1, 16), torch.tensor([1]))
    signatures = Signatures(observe(upload), torch.tensor([1]), rng(0))
    own = signatures(pictures(0, 1, 16)[None])
    assert signatures._fast is False
    for seen, found in zip(signatures.observed, own, strict=True):
        torch.testing.assert_close(found[0], seen, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("defence", ["noise:std=0.5", "sparsify:rate=0.9", "soteria:rate=0.5"])
def test_members_are_as_noisy_and_hidden_as_the_update(
    defence: str, victim: Model, pictures: Pictures
) -> None:
    client = Client(model=victim, defenses=(catalog.defense(defence),))
    upload, _ = client.step(pictures(0, 1, 16), torch.tensor([1]))
    observation = observe(upload, defenses=client.defenses)
    signatures = Signatures(observation, torch.tensor([1]), rng(0))
    own = signatures(torch.stack([pictures(0, 1, 16)] * 8))
    for seen, found in zip(signatures.observed, own, strict=True):
        if "noise" in defence:
            assert float(found.std(0).mean()) == pytest.approx(0.5, rel=0.1)
        else:
            torch.testing.assert_close(found[0], seen, rtol=1e-3, atol=1e-6)


# -- kernel ridge ------------------------------------------------------------------------------


@given(seed=seeds)
def test_leave_one_out_residuals_are_those_of_fits_without_the_example(seed: int) -> None:
    blocks = [torch.randn(14, 6, generator=rng(seed), dtype=torch.float64)]
    outputs = torch.randn(14, 3, generator=rng(seed + 1), dtype=torch.float64)
    found = KernelRidge.fit(blocks, outputs)
    x = found.blocks[0]
    for left in range(14):
        rest = [i for i in range(14) if i != left]
        mean, offset = x[rest].mean(0), outputs[rest].mean(0)
        own = x[rest] - mean
        gram = own.T @ own + found.strength * torch.eye(6, dtype=torch.float64)
        weight = torch.linalg.solve(gram, own.T @ (outputs[rest] - offset))
        residual = outputs[left] - offset - (x[left] - mean) @ weight
        torch.testing.assert_close(found.residuals[left], residual, rtol=1e-6, atol=1e-7)


@given(seed=seeds)
def test_the_order_of_the_members_changes_nothing(seed: int) -> None:
    blocks = [torch.randn(20, n, generator=rng(seed), dtype=torch.float64) for n in (5, 40, 7)]
    outputs = torch.randn(20, 9, generator=rng(seed + 1), dtype=torch.float64)
    order = torch.randperm(20, generator=rng(seed + 2))
    one = KernelRidge.fit(blocks, outputs)
    other = KernelRidge.fit([block[order] for block in blocks], outputs[order])
    new = [
        torch.randn(block.shape[1], generator=rng(seed), dtype=torch.float64) for block in blocks
    ]
    torch.testing.assert_close(one(new), other(new), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.residuals[order], other.residuals, rtol=1e-5, atol=1e-6)


def test_what_says_nothing_predicts_the_mean() -> None:
    outputs = torch.randn(300, 4, generator=rng(0), dtype=torch.float64)
    found = KernelRidge.fit([torch.randn(300, 9, generator=rng(1), dtype=torch.float64)], outputs)
    new = torch.randn(9, generator=rng(2), dtype=torch.float64)
    assert float((found([new]) - outputs.mean(0)).norm()) < 0.5 * float(outputs.std())
    found = KernelRidge.fit([torch.zeros(300, 2, dtype=torch.float64)], outputs)
    torch.testing.assert_close(found([new[:2] * 0]), outputs.mean(0))


# -- the rounds --------------------------------------------------------------------------------


class Straight(nn.Module):
    """Logits whose first derivatives by the weights are the image itself."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.head = nn.Linear(pixels, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


@given(seed=seeds)
def test_an_affine_update_is_inverted_exactly_in_one_round(seed: int) -> None:
    """With more members than pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Straight(48).double()
    model = Model(module=module, loss=lambda logits, labels: logits[:, 0].mean() + 0 * labels.sum())
    images = torch.rand(1, 3, 4, 4, generator=rng(seed))
    upload, _ = Client(model=model, grant_labels=True).step(images, torch.tensor([0]))
    public = Public(images=torch.rand(90, 3, 4, 4, generator=rng(seed + 1)), shift=0.0)
    first = Phase(
        name="first", space=Pixels(), steps=1, begin=Ensemble(evaluations=30, source=public)
    )
    attack = Attack(name="one", reference="", phases=(first,), restarts=1)
    found = attack(observe(upload)).images
    torch.testing.assert_close(found, images.to(found), rtol=0, atol=1e-4)


@pytest.mark.parametrize("learns", ["samples", "public", "leaves"])
def test_rounds_come_nearer_than_the_mean(
    learns: str, prior: Generator, victim: Model, pictures: Pictures
) -> None:
    truth = pictures(5, 1, 16) if learns == "public" else prior.sample(1, seed=9)
    if learns == "leaves":
        truth = Leaves()(
            SearchContext(model=victim, generator=None, image_shape=(3, 16, 16), batch=1), 1, rng(4)
        )
    upload, _ = Client(model=victim).step(truth, torch.tensor([2]))
    if learns == "public":
        public = Public(images=pictures(8, 200, 16))
        attack = ensemble(prior, public=public, features=0)
    elif learns == "samples":
        attack = ensemble(prior)
    else:
        attack = ensemble(prior, features=0)
        phases = [dataclasses.replace(attack.phases[0], begin=Ensemble())]
        attack = dataclasses.replace(attack, phases=(*phases, *attack.phases[1:]))
    source = attack.phases[0].begin
    assert isinstance(source, Ensemble)
    context = SearchContext(model=victim, generator=prior, image_shape=(3, 16, 16), batch=1)
    mean = source.source(context, 300, rng(0)).mean(0)
    found = attack.with_evaluations(400)(observe(upload))
    assert [result.name for result in found.phases] == [
        "first round",
        "round 2",
        "round 3",
        "round 4",
    ]
    error = float((found.images - truth).square().mean())
    assert error < 0.7 * float((mean - truth).square().mean())


def test_a_round_around_a_guess_needs_a_first_one(victim: Model, pictures: Pictures) -> None:
    upload, _ = Client(model=victim).step(pictures(0, 1, 16), torch.tensor([1]))
    begin = Ensemble(evaluations=10, around=True)
    phase = Phase(name="second", space=Pixels(), steps=1, begin=begin)
    with pytest.raises(InputError, match="a first round"):
        Attack(name="one", reference="", phases=(phase,), restarts=1)(observe(upload))


def test_public_images_are_each_used_and_checked(victim: Model) -> None:
    images = torch.rand(7, 3, 16, 16, generator=rng(0))
    context = SearchContext(model=victim, generator=None, image_shape=(3, 16, 16), batch=1)
    drawn = Public(images=images, shift=0.0)(context, 17, rng(1))
    both = torch.cat([images, images.flip(-1)])
    which = torch.cdist(drawn.flatten(1), both.flatten(1)).argmin(1) % 7
    counts = which.bincount(minlength=7)
    assert counts.min() >= 2
    assert counts.max() <= 3
    with pytest.raises(InputError, match="public images"):
        Public(images=torch.rand(0, 3, 16, 16))
    with pytest.raises(InputError, match="as the private ones"):
        Public(images=torch.rand(2, 3, 8, 8))(context, 2, rng(1))
    assert "7 images" in repr(Public(images=images, name="faces.zip"))


def test_samples_are_the_priors(prior: Generator, victim: Model) -> None:
    context = SearchContext(model=victim, generator=prior, image_shape=(3, 16, 16), batch=4)
    found = Samples(shift=0.0)(context, 70, rng(0))
    assert found.shape == (70, 3, 16, 16)
    assert torch.equal(found, Samples(shift=0.0)(context, 70, rng(0)))


@pytest.mark.parametrize(
    "settings", [{"evaluations": 0}, {"fit": 0}, {"lr": 0.0}], ids=lambda each: next(iter(each))
)
def test_settings_are_checked(settings: dict[str, float], prior: Generator) -> None:
    with pytest.raises(InputError, match="expected an ensemble"):
        Ensemble(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rounds"):
        ensemble(prior, rounds=-1)
