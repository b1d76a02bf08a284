"""Known noise: what the attacker searches with, selects by and guesses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.federation.defenses import (
    ATS,
    DPSGD,
    Aggregate,
    Censor,
    Defense,
    Noise,
    Precode,
)
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.leakage.representation import observed_representations, representations
from gifd.model import Model
from gifd.priors import Generator
from gifd.search import (
    Adam,
    Comparison,
    Cosine,
    Distance,
    Latent,
    LayerCosine,
    PartialMatching,
    Phase,
    Pixels,
    Regression,
    Squared,
)
from gifd.updates import Update
from gifd.victims import ConvNet, LeNet


def network(make: Callable[[], nn.Module]) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(module=make().eval())


VICTIM = network(lambda: LeNet(5, size=16))
PROTOCOLS: list[Protocol] = [
    FedSGD(),
    FedAvg(steps=3, lr=0.2),
    FedAvg(steps=2, lr=0.1, optimizer=SGD(momentum=0.9)),
]
DISTANCES: list[Distance] = [Cosine(), Squared(), LayerCosine(norm=0.1), PartialMatching()]


def picture(seed: int, side: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return nn.functional.interpolate(
        torch.rand(1, 3, 4, 4, generator=rng), size=side, mode="bilinear"
    )


def observed(
    *defenses: Defense, attacker: str = "adaptive", protocol: Protocol | None = None, seed: int = 0
) -> Observation:
    client = Client(model=VICTIM, protocol=protocol or FedSGD(), defenses=defenses, seed=seed)
    upload, _ = client.step(picture(seed), torch.tensor([3]))
    return observe(upload, attacker=attacker, defenses=defenses)


def random_update(seed: int) -> Update:
    rng = torch.Generator().manual_seed(seed)
    return Update({n: torch.randn(p.shape, generator=rng) for n, p in VICTIM.parameters.items()})


# -- what is searched by, and what is chosen by --------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_without_noise_both_are_the_distance_itself(distance: Distance, protocol: Protocol) -> None:
    observation = observed(protocol=protocol)
    replayed = random_update(1)
    plain = distance(observation.as_gradient(replayed), observation.gradient)
    searched, chosen = Comparison(observation)(distance, replayed)
    assert torch.equal(searched, plain)
    assert torch.equal(chosen, plain)


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_with_noise_no_number_serves_both(seed: int) -> None:
    """The gradients of the two distances have disjoint supports that cover everything."""
    compare = Comparison(observed(Noise(std=0.3)))
    replayed = random_update(seed)
    leaves = {name: tensor.requires_grad_() for name, tensor in replayed.items()}
    slopes = [
        torch.autograd.grad(part, list(leaves.values()))
        for part in compare(Squared(), Update(leaves))
    ]
    searched, chosen = (torch.cat([s.flatten() for s in each]) != 0 for each in slopes)
    assert not bool((searched & chosen).any())
    assert bool((searched | chosen).all())
    share = float(chosen.float().mean())
    assert share == pytest.approx(Comparison.WITHHELD, abs=0.02)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_noise_is_known_in_a_gradients_units(protocol: Protocol) -> None:
    told = observed(Noise(std=0.02), protocol=protocol)
    clean = observed(protocol=protocol)
    added = told.gradient - clean.gradient
    for tensor in added.tensors:
        if tensor.numel() > 100:
            assert told.protocol.noise(1) == pytest.approx(float(tensor.std()), rel=0.2)
    assert observed(Noise(std=0.02), attacker="static").protocol.noise(1) == 0


def test_noises_add_up() -> None:
    told = observed(DPSGD(noise=0.3, norm=2.0), Noise(std=0.8))
    assert told.protocol.noise(1) == pytest.approx(1.0)


DP = DPSGD(noise=2.0, norm=0.5)
SLOW = 1e-4  # of learning: what noise changes in later gradients is nothing
RULES: list[tuple[tuple[Defense, ...], Protocol, int]] = [
    ((DP,), FedSGD(), 8),
    ((DP,), FedAvg(steps=1, lr=SLOW), 8),
    ((DP,), FedAvg(steps=4, lr=SLOW), 8),
    ((DP,), FedAvg(steps=4, lr=SLOW, batch_size=2), 8),
    ((DP,), FedAvg(steps=4, lr=SLOW, batch_size=2, optimizer=SGD(momentum=0.9)), 8),
    ((DP,), FedAvg(steps=5, lr=SLOW, optimizer=SGD(momentum=0.5)), 4),
    ((Aggregate(clients=4), DP), FedSGD(), 8),
    ((DP, Aggregate(clients=4)), FedSGD(), 8),
    (
        (DP, Aggregate(clients=2)),
        FedAvg(steps=3, lr=SLOW, batch_size=2, optimizer=SGD(momentum=0.5)),
        8,
    ),
    ((ATS(), DP), FedAvg(steps=4, lr=SLOW, batch_size=2), 8),
    ((DP, ATS()), FedSGD(), 4),
    ((Precode(width=4), DP), FedAvg(steps=2, lr=SLOW, batch_size=2), 4),
    ((Censor(tries=2), DP), FedSGD(), 4),
]
"""Defences, a protocol and a batch size."""


@pytest.mark.parametrize(("defenses", "protocol", "batch"), RULES, ids=repr)
def test_dpsgds_noise_is_known_on_what_arrives(
    defenses: tuple[Defense, ...], protocol: Protocol, batch: int
) -> None:
    """Compared with the spread over many clients with the same images and other seeds."""
    model = VICTIM
    for defense in defenses:
        model = defense.prepare(model, (3, 16, 16))
    images = torch.cat([picture(seed) for seed in range(batch)])
    labels = torch.arange(batch) % 5

    def sent(dp: DPSGD, seed: int) -> Update:
        real = protocol
        for index, defense in enumerate(defenses):
            real = dp.wrap(real, seed) if defense is DP else defense.wrap(real, index)
        update = real(model, model.parameters, model.buffers, images, labels)
        return real.as_gradient(update.detach(), model.parameters)

    quiet = sent(DPSGD(noise=0.0, norm=DP.norm), 0)
    numbers = torch.cat([(sent(DP, s) - quiet)[n].flatten() for s in range(2) for n in quiet])
    upload = Upload(
        update=quiet, model=model, protocol=protocol, image_shape=(3, 16, 16), batch_size=batch
    )
    known = observe(upload, defenses=defenses).protocol.noise(batch)
    # of n numbers the spread is known to 1 / sqrt(2 n): five of these, and what rounding adds
    margin = 5 / (2 * len(numbers)) ** 0.5 + 2e-3
    assert known == pytest.approx(float(numbers.std()), rel=margin)


def test_noise_of_a_batch_that_clients_cannot_share_is_refused() -> None:
    upload, _ = Client(model=VICTIM).step(picture(0), torch.tensor([3]))
    known = observe(upload, defenses=(Aggregate(clients=2), DP))
    with pytest.raises(InputError, match="2 clients share alike, got 1"):
        known.protocol.noise(1)


# -- what it is good for -------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior() -> Generator:
    """Blurs of 4 x 4 colours, 16 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        coarse = nn.Sequential(nn.Linear(24, 3 * 16), nn.Tanh(), nn.Unflatten(1, (3, 4, 4)))
    return Generator([coarse, nn.Upsample(size=16, mode="bilinear")], latent=(24,))


def errors(attack: Attack, attacker: str, prior: Generator, std: float) -> list[float]:
    found = []
    for seed in range(4):
        image = prior.sample(1, seed=seed + 90)
        client = Client(model=VICTIM, defenses=(Noise(std=std),), seed=seed)
        upload, _ = client.step(image, torch.tensor([3]))
        observation = observe(upload, attacker=attacker, defenses=client.defenses)
        found.append(float((attack(observation, seed=seed).images - image).square().mean()))
    return found


def test_who_knows_of_noise_does_not_fit_it(prior: Generator) -> None:
    """A pixel search, which can fit noise, keeps an iterate from before it does."""
    phases = (
        Phase(name="latent", space=Latent(), steps=30),
        Phase(name="pixels", space=Pixels(), steps=60, optimizer=Adam(lr=0.1)),
    )
    attack = Attack(name="t", reference="none", phases=phases, restarts=1, prior=prior)
    static = errors(attack, "static", prior, 0.05)
    adaptive = errors(attack, "adaptive", prior, 0.05)
    assert sum(adaptive) < 0.7 * sum(static), (adaptive, static)


def test_a_guess_from_noise_alone_is_what_all_images_have_in_common(prior: Generator) -> None:
    phase = Phase(name="regression", space=Latent(), steps=1, begin=Regression(evaluations=12))
    attack = Attack(name="t", reference="none", phases=(phase,), restarts=1, prior=prior)
    static = errors(attack, "static", prior, 3.0)
    adaptive = errors(attack, "adaptive", prior, 3.0)
    mean = torch.cat([prior.sample(50, seed=0)]).mean(0)
    known = [float((mean - prior.sample(1, seed=s + 90)).square().mean()) for s in range(4)]
    assert sum(adaptive) < 0.8 * sum(static), (adaptive, static)
    assert sum(adaptive) < 1.5 * sum(known), (adaptive, known)


@pytest.mark.parametrize("std", [0.002, 0.006, 0.012])
def test_own_examples_are_disturbed_as_the_private_one_is(std: float) -> None:
    """The observed representation has the same cosine to the true one as a disturbed example."""
    victim = network(lambda: ConvNet(5, width=32))
    image, label = picture(0, 32), torch.tensor([3])
    own = representations(victim, image)
    cosines, expected = [], []
    for seed in range(12):
        client = Client(model=victim, defenses=(Noise(std=std),), seed=seed)
        known = observe(client.step(image, label)[0], defenses=client.defenses)
        seen = observed_representations(known, label)
        assert not seen.plain
        copies = seen.as_seen(0, own.expand(50, -1), torch.Generator().manual_seed(seed))
        expected.append(float((copies @ own[0]).mean()))
        cosines.append(float(seen.directions[0] @ own[0]))
    assert sum(cosines) / 12 == pytest.approx(sum(expected) / 12, abs=0.05)
    assert sum(cosines) / 12 < 0.99
