"""Conformance: every attack of the catalogue, in every preset, through every test."""

import dataclasses
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import Attacker, observe
from gifd.attacks import Attack, fedleak, ggl, gias, gifd, gradinversion, ig
from gifd.attacks.presets import PRESETS
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg
from gifd.federation.secret import Secret
from gifd.images import read_image
from gifd.model import Model
from gifd.priors import Generator, Stage, State, biggan, stylegan2
from gifd.priors.dcgan import dcgan_stages
from gifd.search import (
    CMAES,
    Chain,
    Consensus,
    Cosine,
    DeepPrior,
    Draw,
    Feature,
    L1Ball,
    Latent,
    Learned,
    Memory,
    Optimizer,
    Phase,
    Pixels,
    Progress,
    Regression,
    SearchContext,
    Space,
    Sphere,
    Squared,
    TotalVariation,
    smoothed_replay,
)
from golden.tiny import named, small_stylegan2

PLAIN = ("ensemble", "lti", "peel")  # without extensions
COMPARED = ("ig", "gradinversion", "ggl", "gias")  # the others' 'gifd-paper' is their 'paper'
SEARCHES = [name for name in catalog.ATTACKS if name != "peel"]  # it solves: test_peel.py
TABLE = [
    (name, preset)
    for name in SEARCHES
    for preset in PRESETS
    if preset != "gifd-paper" or name in COMPARED
]
every_attack = pytest.mark.parametrize(("name", "preset"), TABLE, ids=lambda value: str(value))


@pytest.fixture(scope="module")
def prior() -> Generator:
    """A DCGAN of 16 px with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(dcgan_stages(latent=8, width=8, channels=3, doublings=2), latent=(8, 1, 1))


def build(name: str, preset: str, prior: Generator, steps: int = 24, restarts: int = 2) -> Attack:
    attack = catalog.attack(name, prior=prior, preset=preset, restarts=restarts)
    steps = max(6, steps // 3) if name == "fedleak" else steps  # each of two evaluations
    return narrow(attack).with_steps(steps)


def narrow(attack: Attack) -> Attack:
    """The same with a narrow deep prior, a small CMA-ES population and a small perceptron."""
    phases = []
    for phase in attack.phases:
        if isinstance(phase.space, DeepPrior):
            phase = dataclasses.replace(phase, space=DeepPrior(width=16))
        if isinstance(phase.optimizer, CMAES):
            optimizer = dataclasses.replace(phase.optimizer, population=6)
            phase = dataclasses.replace(phase, optimizer=optimizer)
        if isinstance(phase.begin, Learned):
            begin = dataclasses.replace(phase.begin, hidden=16, inputs=200, epochs=4)
            phase = dataclasses.replace(phase, begin=begin)
        phases.append(phase)
    return dataclasses.replace(attack, phases=tuple(phases))


def source_of(name: str) -> str:
    return "searched" if name == "dlg" else "inferred"


def observed(
    victim: Model, pictures: Callable[..., Tensor], batch: int = 1
) -> tuple[Observation, Secret]:
    labels = torch.arange(batch) + 1
    client = Client(model=victim, grant_labels=batch > 1)
    upload, secret = client.step(pictures(3, batch, 16), labels)
    return observe(upload), secret


@every_attack
def test_improves_on_its_start(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observed(victim, pictures)
    found = build(name, preset, prior)(observation)
    first = [d for d in found.phases[0].curve[0] if d == d]
    if name not in PLAIN:  # they do not follow the distance: test_ensemble.py, test_learned.py
        assert found.distance < min(first)
    assert found.images.shape == (1, 3, 16, 16)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert found.label_source == source_of(name)
    assert name == "dlg" or found.labels.tolist() == [1]


@every_attack
def test_is_deterministic_by_its_seed(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observed(victim, pictures)
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
    observation, _ = observed(victim, pictures)
    randomness = torch.get_rng_state()
    with untouched(victim.module), untouched(nn.ModuleList(prior.stages)):
        build(name, preset, prior, steps=6)(observation)
    assert torch.equal(torch.get_rng_state(), randomness)


@every_attack
def test_takes_a_batch_of_two_with_granted_labels(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observed(victim, pictures, batch=2)
    found = build(name, preset, prior, steps=8)(observation)
    assert found.images.shape == (2, 3, 16, 16)
    assert found.label_source == ("searched" if name == "dlg" else "granted")
    assert not torch.equal(found.images[0], found.images[1])


@every_attack
def test_takes_a_weight_delta_of_fedavg(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    client = Client(model=victim, protocol=FedAvg(steps=2, lr=0.01, optimizer=SGD(momentum=0.5)))
    observation = observe(client.step(pictures(3, 1, 16), torch.tensor([2]))[0])
    found = build(name, preset, prior, steps=20)(observation)
    assert name == "dlg" or found.labels.tolist() == [2]
    first = found.phases[0].curve[0][found.phases[0].best_restart]
    # a few generations of GGL follow the divergence first; LTI takes one step
    assert found.distance <= first if name in ("ggl", "lti") else found.distance < first


@every_attack
def test_ctrl_c_gives_the_best_so_far(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observed(victim, pictures)
    seen: list[Progress] = []

    def stop_soon(now: Progress) -> None:
        seen.append(now)
        if len(seen) == 4:
            raise KeyboardInterrupt

    attack = build(name, preset, prior, steps=40)
    if name == "lti":
        attack = dataclasses.replace(attack, phases=attack.phases * 5)  # it has but one step
    found = attack(observation, callback=stop_soon)
    assert found.interrupted
    assert len(seen) == 4
    with smoothed_replay(attack.phases[0].smoothing):
        replayed = observation.replay(found.images, found.labels)
    if name in ("dlg", "idlg"):
        return  # iterates are not clipped and labels may be soft, unlike the answer
    again = float(attack.phases[0].distance(replayed, observation.update))
    told = min(now.distance for now in seen) if name == "lti" else seen[-1].distance
    assert again == pytest.approx(told, rel=1e-3)


@every_attack
def test_counts_its_evaluations(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation, _ = observed(victim, pictures)
    seen: list[Progress] = []
    attack = narrow(catalog.attack(name, prior=prior, preset=preset, restarts=2))
    attack = attack.with_evaluations(30)
    found = attack(observation, callback=seen.append)
    assert found.evaluations == attack.planned_evaluations <= 30
    assert seen[-1].evaluations_planned == found.evaluations
    longer = attack.with_steps(sum(phase.cost for phase in attack.phases) + 1)
    assert longer.planned_evaluations > 30, "one more step would not fit"


@every_attack
def test_refuses_what_does_not_fit(
    name: str, preset: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    with pytest.raises(InputError, match="evaluations"):
        catalog.attack(name, prior=prior, preset=preset, restarts=4).with_evaluations(1)
    if not catalog.needs_prior(name):
        return
    if name not in ("ensemble", "lti"):  # they can learn without one: test_shapes.py
        with pytest.raises(InputError, match="a prior"):
            catalog.attack(name, prior=None, preset=preset)
    large = observe(Client(model=victim).step(pictures(0, 1, 32), torch.tensor([0]))[0])
    with pytest.raises(InputError, match="3 x 32 x 32") as error:
        build(name, preset, prior, steps=8)(large)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "lti"])  # starts nowhere
def test_a_restart_that_becomes_nan_is_dropped_and_reported(
    name: str,
    victim: Model,
    prior: Generator,
    pictures: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observation, _ = observed(victim, pictures)
    attack = build(name, "paper", prior, steps=8)
    space = type(attack.phases[0].space)
    start = space.start

    def half_broken(self: Space, context: SearchContext, draw: Draw) -> State:
        state = start(self, context, draw)
        for tensor in state.values():
            tensor[0] = torch.nan
        return state

    monkeypatch.setattr(space, "start", half_broken)
    found = attack(observation)
    assert found.dropped == (0,)
    assert found.distance == found.distance
    assert bool(torch.isfinite(found.images).all())
    with pytest.raises(ModelError, match="finite"):
        build(name, "paper", prior, steps=8, restarts=1)(observation)


# -- behind every defence ------------------------------------------------------------------

STRENGTHS = {
    "noise": "noise:std=0.01",
    "laplace": "laplace:std=0.01",
    "clip": "clip:norm=0.5",
    "sparsify": "sparsify:rate=0.8",
    "soteria": "soteria:rate=0.5",
    "quantize": "quantize:scheme=sign",
    "dpsgd": "dpsgd:noise=0.1",
    "censor": "censor:tries=4",
    "ats": "ats",
    "precode": "precode:width=8",
    "aggregate": "aggregate:clients=2",
    "hide": "hide:parts=head",
}
every_defence = pytest.mark.parametrize("defence", list(catalog.DEFENSES))


@pytest.mark.parametrize("name", SEARCHES)
@every_defence
def test_attacks_behind_every_defence(
    name: str, defence: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    client = Client(
        model=victim, defenses=(catalog.defense(STRENGTHS[defence]),), grant_labels=True
    )
    upload, _ = client.step(pictures(3, 2, 16), torch.tensor([1, 3]))
    observation = observe(upload, defenses=client.defenses)
    attack = build(name, "strongest", prior, steps=6, restarts=1)
    found = attack(observation)
    assert found.images.shape == (2, 3, 16, 16)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert math.isfinite(found.distance)
    assert found.dropped == ()
    again = attack(observation)
    assert torch.equal(found.images, again.images)


@every_defence
def test_restarts_are_batched_behind_every_defence(
    defence: str, prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    client = Client(
        model=victim, defenses=(catalog.defense(STRENGTHS[defence]),), grant_labels=True
    )
    upload, _ = client.step(pictures(3, 2, 16), torch.tensor([1, 3]))
    observation = observe(upload, defenses=client.defenses)
    attack = build("gifd", "paper", prior, steps=4, restarts=2)
    one_by_one, batched = (attack(observation, batched=each) for each in (False, True))
    first = [torch.tensor(found.phases[0].curve[0]) for found in (one_by_one, batched)]
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attacker", ["static", "adaptive", "estimated"])
@every_defence
def test_every_attacker_meets_every_defence(
    defence: str, attacker: Attacker, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    """Also the label of one image, which no defence here hides completely."""
    strength = "aggregate:clients=1" if defence == "aggregate" else STRENGTHS[defence]
    client = Client(model=victim, defenses=(catalog.defense(strength),))
    upload, _ = client.step(pictures(3, 1, 16), torch.tensor([2]))
    observation = observe(upload, attacker=attacker, defenses=client.defenses)
    attack = catalog.attack("ig", prior=None, preset="paper", restarts=1).with_steps(4)
    found = attack(observation)
    assert math.isfinite(found.distance)
    if defence not in ("laplace", "noise", "dpsgd", "censor"):
        assert found.labels.tolist() == [2]
    granted = observation.grants()
    assert granted["attacker"] == attacker
    assert (granted["defenses"] is None) == (attacker != "adaptive")


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
            "Adam(lr=0.1, schedule=WarmupCosine(warmup=0.05, decay=0.75), signed=False, noise=0.0)"
        )
        assert repr(phase.distance) == "Cosine(norm=0.0)"
        assert [repr(r) for r in phase.regularizers] == [
            "TotalVariation(weight=0.0001)",
            "ImageNorm(weight=1e-06)",
        ]
        assert (phase.curvature, phase.smoothing) == (0, 0)
        assert phase.keep is None
    (pixels,) = catalog.attack("ig", prior=None, preset="paper").phases
    assert (pixels.space, pixels.steps) == (Pixels(), 24_000)
    assert (pixels.curvature, pixels.smoothing) == (0, 0)
    assert [repr(r) for r in pixels.regularizers] == ["TotalVariation(weight=0.1)"]
    assert "signed=True" in repr(pixels.optimizer)


@pytest.mark.parametrize(("preset", "signed"), [("paper", True), ("gifd-paper", False)])
def test_ig_steps_by_signs_alone_and_ever_less(
    preset: str, signed: bool, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    """Its actual steps: 0.1 at first, a tenth after 3/8, 5/8 and 7/8 of the steps.

    Of two signs Adam makes a second step of either 1 or 1/19 of the rate.
    """
    moved: list[Tensor] = []

    @dataclasses.dataclass(frozen=True)
    class Measured(Optimizer):
        inner: Optimizer

        def init(self, x: Tensor, steps: int) -> Memory:
            return self.inner.init(x, steps)

        def step(
            self,
            memory: Memory,
            x: Tensor,
            gradient: Tensor,
            objective: Tensor,
            noise: Tensor | None,
        ) -> tuple[Memory, Tensor]:
            memory, after = self.inner.step(memory, x, gradient, objective, noise)
            moved.append((after - x).abs().flatten())
            return memory, after

    observation, _ = observed(victim, pictures)
    attack = catalog.attack("ig", prior=None, preset=preset, restarts=1).with_steps(16)
    (phase,) = attack.phases
    assert isinstance(phase.optimizer, Optimizer)
    phase = dataclasses.replace(phase, optimizer=Measured(phase.optimizer))
    dataclasses.replace(attack, phases=(phase,))(observation)
    tenths = [1.0] * 6 + [0.1] * 4 + [0.01] * 4 + [0.001] * 2
    longest = [
        float(step.max()) / (0.1 * factor) for step, factor in zip(moved, tenths, strict=True)
    ]
    assert longest[0] == pytest.approx(1, rel=1e-3)
    assert 0.3 < min(longest) < max(longest) < 3
    one_of_two = torch.isclose(moved[1], torch.tensor(0.1), rtol=1e-3)
    one_of_two |= torch.isclose(moved[1], torch.tensor(0.1 / 19), rtol=1e-3)
    share = float(one_of_two.float().mean())  # not all: some gradients are zero at first
    assert (share > 0.9) == signed, share


@pytest.mark.parametrize("name", [n for n in SEARCHES if n not in COMPARED])
def test_what_gifd_does_not_compare_is_as_in_its_paper(name: str, prior: Generator) -> None:
    paper = catalog.attack(name, prior=prior, preset="paper")
    compared = catalog.attack(name, prior=prior, preset="gifd-paper")
    assert (compared.phases, compared.restarts) == (paper.phases, paper.restarts)
    assert compared.preset == "gifd-paper"


@pytest.mark.parametrize("name", [name for name in SEARCHES if name not in PLAIN])
def test_every_extension_can_be_switched_off(name: str, prior: Generator) -> None:
    strongest = catalog.attack(name, prior=prior, preset="strongest")
    on = set(strongest.extensions)
    assert on
    for extension in on:
        less = catalog.attack(name, prior=prior, preset="strongest", without=[extension])
        assert set(less.extensions) == on - {extension}
        assert less.phases != strongest.phases, f"'{extension}' changes nothing"
    plain = catalog.attack(name, prior=prior, preset="strongest", without=sorted(on))
    assert plain.phases == catalog.attack(name, prior=prior, preset="paper").phases


def test_each_extension_does_what_it_says(prior: Generator) -> None:
    """On attacks as `paper`, with 1,000 steps in each latent and feature phase."""

    def phases(**chosen: float) -> tuple[Phase, ...]:
        return gifd(prior, preset="paper", features=2, restarts=2, **chosen).phases  # type: ignore[arg-type]

    bare = phases()
    assert [phase.name for phase in bare] == ["latent", "feature 1", "feature 2"]
    assert [phase.smoothing for phase in phases(smoothing=0.2)] == [0.0, 0.0, 0.2]
    weights = [phase.regularizers[0] for phase in phases(variation=0.05)]
    assert weights == [TotalVariation(weight=w) for w in (1e-4, 0.05, 0.05)]
    assert {phase.keeps for phase in phases(best=True)} == {"best"}
    assert phases(consensus=1e-9)[-1].steps == 1, "never none"
    *rest, last = phases(consensus=0.1)
    assert tuple(rest) == bare
    assert last == dataclasses.replace(bare[-1], name="consensus", steps=100, begin=Consensus())
    assert gifd(prior, features=2, restarts=1).phases[-1].name == "feature 2", "alone it has none"
    (pixels,) = ig(preset="paper", smoothing=0.2, variation=0.05).phases
    assert (pixels.smoothing, pixels.regularizers) == (0.2, (TotalVariation(weight=0.05),))
    assert gradinversion(preset="paper", curvature=0.7).phases[0].curvature == 0.7
    assert fedleak(preset="paper", curvature=0.7).phases[0].curvature == 0.7
    for build, distance in ((gias, Cosine()), (ggl, Squared(mean=True))):
        first, *rest = build(prior, preset="paper", regression=0.25).phases
        assert (first.name, first.space, first.steps, first.cost) == (
            "regression",
            Latent(),
            1,
            250,
        )
        assert isinstance(first.begin, Regression)
        assert first.distance == distance
        assert [phase.name for phase in rest] == [
            phase.name for phase in build(prior, preset="paper").phases
        ]


@pytest.mark.parametrize(("features", "exact"), [(1, 1), (2, 2), (3, 2)])
def test_a_smoothed_replay_finishes_what_an_exact_one_began(
    features: int, exact: int, prior: Generator
) -> None:
    attack = gifd(prior, preset="strongest", features=features, restarts=1)
    widths = [phase.smoothing for phase in attack.phases]
    assert widths == [0.0] * exact + [0.3] * (features + 1 - exact)
    assert gifd(prior, preset="strongest", restarts=2).phases[-1].smoothing == 0.3


# -- the paper's generators ----------------------------------------------------------------


def paper_prior(name: str) -> Generator:
    if name == "stylegan2":
        return stylegan2(small_stylegan2())
    return biggan(named("biggan truncation 1.0"), area=16)


def test_stylegan2_takes_the_papers_table() -> None:
    """K = 4 of 8 blocks (here 2 of 3), w and noise searched along, every radius."""
    attack = catalog.attack("gifd", prior=paper_prior("stylegan2"), preset="paper")
    latent, *features = attack.phases
    assert latent.space == Latent()
    assert latent.constraints == dict.fromkeys(["x", *noises(0)], beside(1000.0))
    assert [phase.space for phase in features] == [Feature(1), Feature(2)]
    for k, phase in enumerate(features, start=1):
        balls = dict(phase.constraints)
        assert balls.pop("x") == L1Ball(radius=2000.0 + 1000.0 * (k - 1))
        along = ["w", *noises(2 * k - 1)]
        assert balls == dict.fromkeys(along, beside(1000.0 + 1000.0 * k))
        assert phase.steps == 1000
    deep = [LayerStub() for _ in range(9)]
    prior = Generator(deep, latent=(3, 4, 4), image_range=(0.0, 1.0), family="stylegan2")
    assert len(catalog.attack("gifd", prior=prior, preset="paper").phases) == 1 + 4
    assert len(gifd(prior, features=9).phases) == 1 + 9 + 1
    for count in (0, 10):
        with pytest.raises(InputError, match=f"expected 1 to 9 feature domains, got {count}"):
            gifd(prior, features=count)


@every_attack
def test_papers_keep_the_last_iterate_and_ours_the_best(
    name: str, preset: str, prior: Generator
) -> None:
    """CMA-ES returns its best; GradInversion's paper does not say, and it has no code."""
    last = (
        preset != "strongest"
        and name not in ("ggl", *PLAIN)
        and (name, preset) != ("gradinversion", "paper")
    )
    phases = [
        phase
        for phase in catalog.attack(name, prior=prior, preset=preset).phases
        if phase.name != "regression"
    ]
    assert {phase.keeps for phase in phases} == {"last" if last else "best"}


def test_gias_leaves_noise_maps_as_they_were_drawn() -> None:
    latent, _ = catalog.attack("gias", prior=paper_prior("stylegan2"), preset="paper").phases
    assert latent.space == Latent(only=("x",))


def test_biggan_takes_the_papers_table() -> None:
    """K = 9 of 13 layers, r = 2000 + 500 a phase, z kept at its initial norm."""
    deep = [LayerStub() for _ in range(13)]
    prior = Generator(deep, latent=(3, 4, 4), image_range=(0.0, 1.0), family="biggan-deep")
    latent, *features = catalog.attack("gifd", prior=prior, preset="paper").phases
    assert latent.constraints == {"x": Sphere()}
    assert [phase.space for phase in features] == [Feature(k) for k in range(1, 10)]
    assert [phase.constraints for phase in features] == [
        {"x": L1Ball(radius=2000.0 + 500.0 * k)} for k in range(9)
    ]


class LayerStub(Stage):
    def forward(self, state: State) -> State:
        return state


def beside(radius: float) -> Chain:
    """Each style and noise map keeps its norm, in a ball around its entry."""
    return Chain((Sphere(each=True), L1Ball(radius=radius)))


def noises(first: int) -> list[str]:
    return [f"noise{i}" for i in range(first, 5)]


@pytest.mark.parametrize("preset", ["paper", "strongest"])
@pytest.mark.parametrize("name", ["stylegan2", "biggan-deep"])
def test_gifd_runs_on_the_papers_generators(
    name: str, preset: str, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    client = Client(model=victim)
    observation = observe(client.step(pictures(3, side=16), torch.tensor([2]))[0])
    attack = catalog.attack("gifd", prior=paper_prior(name), preset=preset, restarts=2)
    attack = attack.with_steps(4 * len(attack.phases))
    found = attack(observation, seed=1)
    assert found.distance < found.phases[0].curve[0][found.phases[0].best_restart]
    assert found.distance == min(phase.distance for phase in found.phases)
    batched = attack(observation, seed=1, batched=True)
    assert batched.distance == pytest.approx(found.distance, rel=1e-3)


def test_a_conditional_prior_draws_the_private_class(
    victim: Model, pictures: Callable[..., Tensor]
) -> None:
    labels = torch.tensor([2, 0])
    client = Client(model=victim, grant_labels=True)
    observation = observe(client.step(pictures(3, 2, 16), labels)[0])
    prior = paper_prior("biggan-deep")
    latent = Latent()
    context = SearchContext(model=victim, generator=prior, image_shape=(3, 16, 16), batch=2)
    draw = Draw(restarts=3, rng=torch.Generator().manual_seed(0), labels=labels.expand(3, 2))
    assert torch.equal(latent.start(context, draw)["label"], labels.expand(3, 2))
    narrow = dataclasses.replace(draw, labels=torch.tensor([2, 7]).expand(3, 2))
    with pytest.raises(InputError, match="labels of 0 to 6"):
        latent.start(context, narrow)
    found = catalog.attack("gifd", prior=prior, preset="paper", restarts=1).with_steps(10)
    assert found(observation).images.shape == (2, 3, 16, 16)


def test_dropping_the_skip_is_for_reproduction_only(
    victim: Model, pictures: Callable[..., Tensor]
) -> None:
    observation = observe(Client(model=victim).step(pictures(3, side=16), torch.tensor([2]))[0])
    prior = paper_prior("stylegan2")
    kept = gifd(prior, preset="paper", restarts=1).with_steps(6)(observation)
    dropped = gifd(prior, preset="paper", restarts=1, drop_skip=True).with_steps(6)(observation)
    assert dropped.phases[0].distance == kept.phases[0].distance
    jump = dropped.phases[1].curve[0][0] - dropped.phases[0].distance
    assert abs(jump) > 1e-4
    assert kept.phases[1].curve[0][0] == pytest.approx(kept.phases[0].distance, abs=1e-5)
    with pytest.raises(InputError, match="expected a StyleGAN2"):
        gifd(paper_prior("biggan-deep"), drop_skip=True)


def test_another_type_than_expected_is_one_line() -> None:
    lines = """
    import torch
    from dataclasses import replace
    from gifd import Client, Model, observe
    from gifd.attacks import ggl, gias, gifd, ig
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    client = Client(model=Model(module=net))
    images = torch.rand(1, 3, 1, 1)
    for mistake in (
        lambda: gifd("faces64"),
        lambda: ggl("faces64"),
        lambda: gias("faces64"),
        lambda: Client(model=torch.nn.Linear(3, 2)),
        lambda: client.step(images, 1),
        lambda: client.step("face.png", torch.tensor([1])),
        lambda: ig()(images),
        lambda: ig()(client.step(images, torch.tensor([1]))[0]),
        lambda: ig()(observe(client.step(images, torch.tensor([1]))[0]), seed=1.5),
        lambda: ig().many(observe(client.step(images, torch.tensor([1]))[0]), seeds=[1]),
        lambda: ig().many([], seeds=[], at_once="2"),
        lambda: replace(ig(), answer="least"),
        lambda: replace(ig().phases[0], keeps="bets"),
        lambda: replace(ig().phases[0], steps=2.5),
    ):
        try:
            mistake()
        except Exception as error:
            print(type(error).__name__, error)
    """  # by itself, because the tests' run-time types would speak first
    plain = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(lines)], capture_output=True, text=True, check=True
    )
    said = plain.stdout.splitlines()
    assert len(said) == 14
    assert all(line.startswith("InputError expected ") and ", got" in line for line in said)
    assert "torch.tensor([3]), got 1" in said[4]
    assert "observe(upload) makes one, got Upload(" in said[7]


def test_what_is_no_extension_of_an_attack_is_named(prior: Generator) -> None:
    with pytest.raises(InputError, match="expected an extension of 'ig' to switch off, got 'luck'"):
        catalog.attack("ig", prior=None, preset="strongest", without=["luck"])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["gifd", "ig", "gias", "ggl", "fedleak", "gradinversion"])
def test_an_extension_of_no_strength_that_there_is_is_refused(
    name: str, wrong: float, prior: Generator
) -> None:
    for extension in catalog.attack(name, prior=prior, preset="strongest").extensions:
        if extension == "best":
            continue
        with pytest.raises(InputError, match="at least 0 and finite") as error:
            catalog.attack(f"{name}:{extension}={wrong}", prior=prior, preset="paper", restarts=2)
        assert "\n" not in str(error.value)


def test_an_answer_shows_and_saves_itself(
    victim: Model, pictures: Callable[..., Tensor], prior: Generator, tmp_path: Path
) -> None:
    seen, _ = observed(victim, pictures, batch=2)
    found = build("ig", "strongest", prior, steps=2, restarts=1)(seen)
    paths = found.save(tmp_path / "answer")
    assert [path.name for path in paths] == ["reconstruction-01.png", "reconstruction-02.png"]
    for path, image in zip(paths, found.images, strict=True):
        assert torch.allclose(read_image(path, size=16), image, atol=0.5 / 255 + 1e-6)
    page = found._repr_html_()
    assert page.count("<img") == 2
    assert "distance" in page
