"""One conformance table: every attack of the catalogue goes through every test, as both presets."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from gifd import catalog
from gifd.attacks import Attack, Extensions
from gifd.errors import InputError, ModelError
from gifd.inversion import Feature, L1Ball, Latent, Pixels, Progress, Sphere
from gifd.model import Model
from gifd.observation import Observation, Secret
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.protocols import FedAvg
from gifd.victims import Client

TABLE = [(name, preset) for name in catalog.ATTACKS for preset in ("paper", "strongest")]
every_attack = pytest.mark.parametrize(("name", "preset"), TABLE, ids=lambda value: str(value))


@pytest.fixture(scope="module")
def prior() -> Generator:
    """A DCGAN of 16 px with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(dcgan_stages(latent=8, width=8, channels=3, doublings=2), latent=(8, 1, 1))


def build(name: str, preset: str, prior: Generator, steps: int = 24, restarts: int = 2) -> Attack:
    attack = catalog.attack(name, prior=prior, preset=preset, restarts=restarts)
    return attack.with_steps(steps)


def observe(
    victim: Model, pictures: Callable[..., Tensor], batch: int = 1
) -> tuple[Observation, Secret]:
    labels = torch.arange(batch) + 1
    client = Client(model=victim, grant_labels=batch > 1)
    return client.step(pictures(3, batch, 16), labels)


@every_attack
def test_improves_on_its_start(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observe(victim, pictures)
    found = build(name, preset, prior)(observation)
    first = [d for d in found.phases[0].curve[0] if d == d]
    assert found.distance < min(first)
    assert found.images.shape == (1, 3, 16, 16)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert found.label_source == "inferred"
    assert found.labels.tolist() == [1]


@every_attack
def test_is_deterministic_by_its_seed(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observe(victim, pictures)
    attack = build(name, preset, prior, steps=8)
    torch.manual_seed(1)
    one = attack(observation, seed=5)
    torch.manual_seed(2)
    two = attack(observation, seed=5)
    other = attack(observation, seed=6)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)


@every_attack
def test_leaves_victim_prior_and_global_randomness_alone(
    name: str,
    preset: str,
    prior: Generator,
    victim: Model,
    pictures: Callable[..., Tensor],
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    observation, _ = observe(victim, pictures)
    randomness = torch.get_rng_state()
    with untouched(victim.module), untouched(nn.ModuleList(prior.stages)):
        build(name, preset, prior, steps=6)(observation)
    assert torch.equal(torch.get_rng_state(), randomness)


@every_attack
def test_takes_a_batch_of_two_with_granted_labels(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observe(victim, pictures, batch=2)
    found = build(name, preset, prior, steps=8)(observation)
    assert found.images.shape == (2, 3, 16, 16)
    assert found.label_source == "granted"
    assert not torch.equal(found.images[0], found.images[1])


@every_attack
def test_takes_a_weight_delta_of_fedavg(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    client = Client(model=victim, protocol=FedAvg(steps=2, lr=0.01, momentum=0.5))
    observation, _ = client.step(pictures(3, 1, 16), torch.tensor([2]))
    found = build(name, preset, prior, steps=8)(observation)
    assert found.labels.tolist() == [2]
    assert found.distance < found.phases[0].curve[0][found.phases[0].best_restart]


@every_attack
def test_ctrl_c_gives_the_best_so_far(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observe(victim, pictures)
    seen: list[Progress] = []

    def stop_soon(now: Progress) -> None:
        seen.append(now)
        if len(seen) == 4:
            raise KeyboardInterrupt

    attack = build(name, preset, prior, steps=40)
    found = attack(observation, callback=stop_soon)
    assert found.interrupted
    assert len(seen) == 4
    replayed = observation.replay(found.images, found.labels)
    again = float(attack.phases[0].distance(replayed, observation.update))
    assert again == pytest.approx(seen[-1].distance, rel=1e-3)


@every_attack
def test_counts_its_evaluations(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observe(victim, pictures)
    seen: list[Progress] = []
    attack = catalog.attack(name, prior=prior, preset=preset).with_evaluations(30)
    found = attack(observation, callback=seen.append)
    assert found.evaluations == attack.planned_evaluations <= 30
    assert seen[-1].evaluations_planned == found.evaluations
    longer = attack.with_steps(sum(phase.steps for phase in attack.phases) + 1)
    assert longer.planned_evaluations > 30, "one more step would not fit"


@every_attack
def test_refuses_what_does_not_fit(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    with pytest.raises(InputError, match="evaluations"):
        catalog.attack(name, prior=prior, preset=preset, restarts=4).with_evaluations(1)
    if not catalog.ATTACKS[name].needs_prior:
        return
    with pytest.raises(InputError, match="a prior"):
        catalog.attack(name, prior=None, preset=preset)
    large = Client(model=victim).step(pictures(0, 1, 32), torch.tensor([0]))[0]
    with pytest.raises(InputError, match="3 x 32 x 32") as error:
        build(name, preset, prior, steps=8)(large)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n, e in catalog.ATTACKS.items() if e.needs_prior])
def test_a_restart_that_becomes_nan_is_dropped_and_reported(
    name: str, victim: Model, prior: Generator, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observe(victim, pictures)

    def half_broken(count: int, rng: torch.Generator) -> dict[str, Tensor]:
        latents = torch.randn(count, 8, 1, 1, generator=rng)
        latents[0] = torch.nan
        return {"x": latents}

    stages = dcgan_stages(latent=8, width=8, channels=3, doublings=2)
    broken = Generator(stages, latent=half_broken)
    found = build(name, "paper", broken, steps=8)(observation)
    assert found.dropped == (0,)
    assert found.distance == found.distance
    with pytest.raises(ModelError, match="finite"):
        build(name, "paper", broken, steps=8, restarts=1)(observation)


def test_the_paper_is_the_paper() -> None:
    """The settings of GIFD's table for StyleGAN2 and of IG's published code, one by one."""
    stages = dcgan_stages(latent=8, width=8, channels=3, doublings=4)
    generator = Generator(stages, latent=(8, 1, 1))
    attack = catalog.attack("gifd", prior=generator, preset="paper")
    assert attack.restarts == 4
    assert attack.answer == "least-distance"
    assert not attack.extensions
    latent, *features = attack.phases
    assert (latent.space, latent.constraints["x"]) == (Latent(), Sphere())
    assert [phase.space for phase in features] == [Feature(1), Feature(2), Feature(3)]
    balls = [phase.constraints["x"] for phase in features]
    assert balls == [L1Ball(radius=2000.0), L1Ball(radius=3000.0), L1Ball(radius=4000.0)]
    for phase in attack.phases:
        assert phase.steps == 1000
        assert repr(phase.optimizer) == (
            "Adam(lr=0.1, schedule=WarmupCosine(warmup=0.05, decay=0.75), signed=False)"
        )
        assert repr(phase.distance) == "Cosine(norm=0.0)"
        assert [repr(r) for r in phase.regularizers] == [
            "TotalVariation(weight=0.0001)",
            "ImageNorm(weight=1e-06)",
        ]
        assert phase.curvature == 0
        assert phase.keep is None
    (pixels,) = catalog.attack("ig", prior=None, preset="paper").phases
    assert (pixels.space, pixels.steps, pixels.curvature) == (Pixels(), 24_000, 0)
    assert "signed=True" in repr(pixels.optimizer)


@pytest.mark.parametrize("name", list(catalog.ATTACKS))
def test_every_extension_can_be_switched_off(name: str, prior: Generator) -> None:
    entry = catalog.ATTACKS[name]
    on = set(entry.strongest.switched_on())
    strongest = catalog.attack(name, prior=prior, preset="strongest")
    assert set(strongest.extensions) == on
    for extension in on:
        less = catalog.attack(name, prior=prior, preset="strongest", without=[extension])
        assert set(less.extensions) == on - {extension}
        assert less.phases != strongest.phases, f"'{extension}' changes nothing"
    plain = catalog.attack(name, prior=prior, preset="strongest", without=sorted(on))
    assert plain.phases == catalog.attack(name, prior=prior, preset="paper").phases
    with pytest.raises(InputError, match="an extension"):
        Extensions().without(["luck"])
