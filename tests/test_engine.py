"""The engine and attacks: what is kept, counted, dropped, constrained and reported."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, Reconstruction
from gifd.errors import InputError, ModelError
from gifd.federation.client import Client
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.leakage.labels import label_hypotheses
from gifd.model import Model
from gifd.priors import Generator, Stage, State
from gifd.search import (
    CMAES,
    Adam,
    Candidate,
    Consensus,
    Constant,
    Cosine,
    Distance,
    Feature,
    ImageNorm,
    Initializer,
    L1Ball,
    Latent,
    LayerCosine,
    Measure,
    Memory,
    Optimizer,
    Phase,
    Pixels,
    Progress,
    RankedDraws,
    Regression,
    Regularizer,
    Schedule,
    Sphere,
    Squared,
    StepDecay,
    TotalVariation,
    WarmupCosine,
    smoothed_curvature,
    smoothed_replay,
)
from gifd.updates import Update
from gifd.victims import ConvNet

Pictures = Callable[..., Tensor]
LATENT = (6, 1, 1)


def one_after_the_other(count: int, rng: torch.Generator) -> State:
    """Latents whose first ones do not depend on the number of draws."""
    return {"x": torch.stack([torch.randn(LATENT, generator=rng) for _ in range(count)]).double()}


def generator(*, stages: Sequence[nn.Module] = (), size: int = 8) -> Generator:
    """A smooth prior in float64: two stages, 8 or 16 px, after `stages`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        grow = nn.Sequential(nn.ConvTranspose2d(6, 5, size // 2), nn.Tanh())
        paint = nn.Sequential(nn.ConvTranspose2d(5, 3, 4, 2, 1), nn.Tanh())
    chain = nn.ModuleList([*stages, grow, paint]).double()
    return Generator(list(chain), latent=one_after_the_other)


def attack(*phases: Phase, restarts: int = 3, prior: Generator | None = None) -> Attack:
    return Attack(
        name="test",
        reference="none",
        phases=phases,
        restarts=restarts,
        prior=generator() if prior is None else prior,
    )


LATENT_PHASE = Phase(name="latent", space=Latent(), steps=5, constraints={"x": Sphere()})
FEATURE_PHASE = Phase(
    name="feature 1", space=Feature(1), steps=3, constraints={"x": L1Ball(share=0.2)}
)
PIXEL_PHASE = Phase(name="pixels", space=Pixels(), steps=3, optimizer=Adam(lr=0.05))
ALL = (LATENT_PHASE, FEATURE_PHASE, PIXEL_PHASE)


@pytest.fixture
def observed(smooth: Model, pictures: Pictures) -> Observation:
    return observe(Client(model=smooth).step(pictures(3).double(), torch.tensor([2]))[0])


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value)


def same(one: Reconstruction, other: Reconstruction) -> bool:
    return torch.equal(one.images, other.images) and all(
        a.curve == b.curve and a.best_restart == b.best_restart
        for a, b in zip(one.phases, other.phases, strict=True)
    )


# -- restarts --------------------------------------------------------------------------


def columns(result: Reconstruction, phase: int = 0) -> Tensor:
    """The curve of each restart: (steps, R)."""
    return torch.tensor(result.phases[phase].curve, dtype=torch.float64)


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=2, lr=0.1)], ids=repr)
def test_batched_restarts_are_the_same_as_one_by_one(
    smooth: Model, pictures: Pictures, protocol: Protocol
) -> None:
    client = Client(model=smooth, protocol=protocol, grant_labels=True)
    observation = observe(client.step(pictures(3, 2).double(), torch.tensor([2, 0]))[0])
    run = attack(*ALL)
    batched, looped = run(observation, batched=True), run(observation, batched=False)
    for index, (one, other) in enumerate(zip(batched.phases, looped.phases, strict=True)):
        assert torch.allclose(columns(batched, index), columns(looped, index), rtol=1e-7)
        assert torch.allclose(one.images, other.images, atol=1e-7)
        assert one.best_restart == other.best_restart
        assert columns(batched, index).shape == (ALL[index].steps, 3)


@pytest.mark.parametrize("train", [False, True])
def test_relus_and_batch_norm_can_be_batched(pictures: Pictures, train: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(4, width=4).double().train(train)
    client = Client(model=Model(module=module), grant_labels=True)
    observation = observe(client.step(pictures(3, 2, 16).double(), torch.tensor([2, 0]))[0])
    phase = dataclasses.replace(LATENT_PHASE, curvature=1.0, steps=3)
    run = attack(phase, prior=generator(size=16))
    batched, looped = run(observation, batched=True), run(observation, batched=False)
    assert torch.allclose(columns(batched), columns(looped), rtol=1e-6)


def test_restarts_do_not_hear_of_each_other(observed: Observation) -> None:
    alone = attack(*ALL, restarts=1)(observed)
    among = attack(*ALL, restarts=3)(observed)
    for index in range(len(ALL)):
        assert torch.allclose(columns(among, index)[:, :1], columns(alone, index), rtol=1e-9)
    first = columns(among)[0]
    assert len(set(first.tolist())) == 3


def test_the_seed_decides_everything(observed: Observation) -> None:
    run = attack(*ALL)
    torch.manual_seed(0)
    first = run(observed, seed=4)
    torch.manual_seed(1)
    assert same(run(observed, seed=4), first)
    assert not same(run(observed, seed=5), first)
    assert first.seed == 4


def test_pixel_searches_follow_the_seed_too(victim: Model, pictures: Pictures) -> None:
    observation = observe(Client(model=victim).step(pictures(3, side=16), torch.tensor([2]))[0])
    run = Attack(name="test", reference="none", phases=(PIXEL_PHASE,), restarts=2)
    assert same(run(observation, seed=4), run(observation, seed=4))
    assert not same(run(observation, seed=4), run(observation, seed=5))


@pytest.mark.parametrize("soft_labels", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_no_two_restarts_and_no_two_images_of_a_pixel_search_begin_alike(
    victim: Model, pictures: Pictures, bounded: bool, soft_labels: bool
) -> None:
    client = Client(model=victim, grant_labels=True)
    observation = observe(client.step(pictures(3, 2, 16), torch.tensor([2, 0]))[0])
    space = Pixels(bounded=bounded, soft_labels=soft_labels)
    phase = dataclasses.replace(PIXEL_PHASE, space=space, steps=1)
    run = Attack(name="test", reference="none", phases=(phase,), restarts=3)
    found = run(observation)
    assert len(set(found.phases[0].curve[0])) == 3
    one, other = found.images
    assert (one - other).abs().mean() > 0.1


# -- ranked draws ----------------------------------------------------------------------

DRAWS = Phase(name="draws", space=Latent(), steps=1, begin=RankedDraws(evaluations=5))


@pytest.mark.parametrize("batched", [False, True])
def test_ranked_draws_begin_at_each_restarts_best(observed: Observation, batched: bool) -> None:
    result = attack(DRAWS, LATENT_PHASE)(observed, batched=batched)
    latents = one_after_the_other(18, torch.Generator().manual_seed(0))["x"]
    prior, distances = generator(), []
    for latent in latents:
        replayed = observed.replay(prior({"x": latent[None]})["x"], result.labels).detach()
        distances.append(Cosine()(replayed, observed.update))
    draws = torch.stack(distances).reshape(6, 3)  # three restarts draw in turn
    drawn, latent_phase = result.phases
    assert torch.allclose(columns(result)[0], draws.min(0).values, rtol=1e-9)
    assert drawn.distance == pytest.approx(float(draws.min()), rel=1e-9)
    assert drawn.best_restart == draws.min(0).values.argmin()
    assert torch.allclose(columns(result, 1)[0], draws.min(0).values, rtol=1e-9)
    assert (drawn.evaluations, latent_phase.evaluations) == (18, 15)


def test_ranked_draws_are_the_same_by_seed_and_ask_for_no_gradient(observed: Observation) -> None:
    class Cuts(Stage):
        def forward(self, state: State) -> State:
            seen.append(state["x"].requires_grad)
            return state

    seen: list[bool] = []
    drawing = dataclasses.replace(DRAWS, optimizer=CMAES(population=4))  # which asks for none
    run = attack(drawing, prior=generator(stages=[Cuts()]))
    first = run(observed, seed=3)
    assert seen
    assert not any(seen)
    assert same(run(observed, seed=3), first)
    assert not same(run(observed, seed=4), first)


class Follows(Optimizer):
    """Adam that records its calls."""

    adam: Adam = Adam()

    def init(self, x: Tensor, steps: int) -> Memory:
        return self.adam.init(x, steps)

    def step(
        self, memory: Memory, x: Tensor, gradient: Tensor, objective: Tensor, noise: Tensor | None
    ) -> tuple[Memory, Tensor]:
        return self.adam.step(memory, x, gradient, objective, noise)


@dataclasses.dataclass(frozen=True)
class Strays(Follows):
    """Adam that makes some restarts non-finite after some steps."""

    restarts: int | slice
    after: int
    to: float

    def step(
        self, memory: Memory, x: Tensor, gradient: Tensor, objective: Tensor, noise: Tensor | None
    ) -> tuple[Memory, Tensor]:
        memory, moved = super().step(memory, x, gradient, objective, noise)
        if memory["count"] == self.after:
            moved[:, self.restarts] = self.to
        return memory, moved


# -- what is kept ----------------------------------------------------------------------


def test_the_best_iterate_is_the_answer(observed: Observation) -> None:
    strays = Strays(slice(None), after=4, to=5.0)
    result = attack(dataclasses.replace(LATENT_PHASE, optimizer=strays, constraints={}))(observed)
    phase, curve = result.phases[0], columns(result)
    assert phase.distance == pytest.approx(float(curve.min()), rel=1e-12)
    assert phase.best_restart == int(curve.min(0).values.argmin())
    assert phase.distance < float(curve[-1].min())
    replayed = observed.replay(result.images, result.labels).detach()
    assert float(Cosine()(replayed, observed.update)) == pytest.approx(result.distance, rel=1e-6)


def test_a_phase_begins_where_the_last_one_was_best(observed: Observation) -> None:
    result = attack(*ALL)(observed)
    for index in (1, 2):
        best_before = columns(result, index - 1).min(0).values
        assert torch.allclose(columns(result, index)[0], best_before, rtol=1e-6)
    distances = [phase.distance for phase in result.phases]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * float(columns(result)[0].min())
    assert (result.phase, result.distance) == ("pixels", distances[-1])


def test_the_last_iterate_is_the_result_where_a_phase_keeps_it(observed: Observation) -> None:
    strays = Strays(slice(None), after=4, to=5.0)
    phase = dataclasses.replace(LATENT_PHASE, optimizer=strays, constraints={}, keeps="last")
    result = attack(phase, FEATURE_PHASE)(observed)
    latent, curve = result.phases[0], columns(result)
    assert latent.distance == pytest.approx(float(curve[-1].min()), rel=1e-12)
    assert latent.distance > float(curve.min())
    assert latent.best_restart == int(curve[-1].argmin())
    assert torch.allclose(columns(result, 1)[0], curve[-1], rtol=1e-6)
    replayed = observed.replay(latent.images, latent.labels).detach()
    assert float(Cosine()(replayed, observed.update)) == pytest.approx(latent.distance, rel=1e-6)


@pytest.mark.parametrize("chosen_by", [0.0, 0.3])
def test_exact_and_smoothed_phases_are_compared_by_one_measure(
    pictures: Pictures, chosen_by: float
) -> None:
    """A smoothed replay of the same images is nearer, so the two distances are not comparable."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(module=ConvNet(4, width=4).double().eval())
    upload, _ = Client(model=model).step(pictures(3, 1, 16).double(), torch.tensor([2]))
    observation = observe(upload)
    exact = dataclasses.replace(LATENT_PHASE, steps=6)
    smoothed = dataclasses.replace(FEATURE_PHASE, steps=6, smoothing=0.3)
    selection = Measure(smoothing=chosen_by)
    run = dataclasses.replace(
        attack(exact, smoothed, prior=generator(size=16)), selection=selection
    )
    result = run(observation)
    assert result.selection == selection
    for phase, width in zip(result.phases, (0.0, 0.3), strict=True):
        with smoothed_replay(chosen_by):
            replayed = observation.replay(phase.images, phase.labels).detach()
        distance = float(Cosine()(replayed, observation.update))
        assert phase.distance == pytest.approx(distance, rel=1e-6)
        assert phase.measure == Measure(smoothing=width), "what its curve is of"
        own = min(value for row in phase.curve for value in row)
        assert (phase.distance == pytest.approx(own, rel=1e-6)) == (width == chosen_by)
    assert result.distance == min(phase.distance for phase in result.phases)
    assert result.evaluations == run.planned_evaluations == 3 * (6 + 6) + 3


@pytest.mark.parametrize("answer", ["least-distance", "last"])
def test_the_rule_for_the_answer(
    observed: Observation, answer: Literal["least-distance", "last"]
) -> None:
    layers = dataclasses.replace(
        FEATURE_PHASE,
        distance=LayerCosine(norm=1.0),
        optimizer=Adam(lr=2.0),
        constraints={},
    )
    run = attack(dataclasses.replace(LATENT_PHASE, steps=20), layers, restarts=1)
    result = dataclasses.replace(run, answer=answer)(observed)
    by_name = {phase.name: phase for phase in result.phases}
    least = min(by_name.values(), key=lambda phase: phase.distance)
    assert least.name == "latent"
    assert result.phase == ("latent" if answer == "least-distance" else "feature 1")
    assert torch.equal(result.images, by_name[result.phase].images)
    assert result.distance == by_name[result.phase].distance


def test_a_last_phase_that_lost_the_way_is_not_the_answer(observed: Observation) -> None:
    strays = Strays(slice(None), after=2, to=5.0)
    worse = dataclasses.replace(FEATURE_PHASE, optimizer=strays, constraints={}, keeps="last")
    result = attack(LATENT_PHASE, worse)(observed)
    latent, feature = result.phases
    assert feature.distance > latent.distance
    assert (result.phase, result.distance) == ("latent", latent.distance)
    assert torch.equal(result.images, latent.images)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_best_restarts_go_on(observed: Observation, keep: int) -> None:
    run = attack(dataclasses.replace(LATENT_PHASE, keep=keep), FEATURE_PHASE, restarts=4)
    result = run(observed)
    order = columns(result).min(0).values.argsort().tolist()
    assert result.phases[0].restarts == (0, 1, 2, 3)
    assert result.phases[1].restarts == tuple(sorted(order[:keep]))
    assert columns(result, 1).shape == (FEATURE_PHASE.steps, keep)
    assert result.phases[1].best_restart in order[:keep]
    assert result.evaluations == 4 * LATENT_PHASE.steps + keep * FEATURE_PHASE.steps


@pytest.mark.parametrize("keep", [None, 2])
def test_a_consensus_begins_at_the_mean_of_all_that_go_on(
    observed: Observation, keep: int | None
) -> None:
    first = Phase(name="latent", space=Latent(), steps=1, keep=keep)
    run = attack(first, dataclasses.replace(first, name="consensus", begin=Consensus()))
    result = run(observed, seed=5)
    drawn = one_after_the_other(3, torch.Generator().manual_seed(5))["x"]  # each stays one step
    best = columns(result).flatten().argsort()[:keep]
    mean = {"x": drawn[best].mean(0, keepdim=True)}
    prior = generator()
    assert torch.allclose(result.phases[1].images, prior(mean)["x"].clamp(0, 1), atol=1e-6)
    assert result.phases[1].restarts == (result.phases[0].best_restart,)
    assert result.evaluations == run.planned_evaluations == 3 + 1


@pytest.mark.parametrize("begin", [RankedDraws(evaluations=3), Regression(evaluations=3)])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_a_later_phase_may_begin_anew_with_fewer_restarts(
    observed: Observation, begin: Initializer, keep: int, batched: bool
) -> None:
    later = Phase(name="later", space=Latent(), steps=2, begin=begin)
    run = attack(dataclasses.replace(LATENT_PHASE, keep=keep), later)
    result = run(observed, batched=batched)
    assert columns(result, 1).shape == (2, keep)
    assert columns(result, 1).isfinite().all()
    assert result.evaluations == run.planned_evaluations


@dataclasses.dataclass(frozen=True)
class Nothing(Distance):
    """Of which no candidate has any."""

    def __call__(self, replayed: Update, observed: Update) -> Tensor:
        return Cosine()(replayed, observed) * torch.nan


def test_what_cannot_be_measured_is_no_answer(observed: Observation) -> None:
    run = dataclasses.replace(attack(LATENT_PHASE), selection=Measure(distance=Nothing()))
    with pytest.raises(ModelError, match="finite distances"):
        run(observed)


def test_distances_are_as_exact_as_the_victim(smooth: Model, pictures: Pictures) -> None:
    """A prior in half precision: what is chosen by is not rounded to it."""
    observation = observe(Client(model=smooth).step(pictures(3).double(), torch.tensor([2]))[0])
    stages = [stage.bfloat16() for stage in generator().stages]

    def latents(count: int, rng: torch.Generator) -> State:
        return {"x": one_after_the_other(count, rng)["x"].bfloat16()}

    prior = Generator(stages, latent=latents, image_range=(0.0, 1.0))
    found = [
        columns(attack(LATENT_PHASE, prior=prior)(observation, batched=batched))[0]
        for batched in (False, True)
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-7)
    assert not torch.equal(found[0], found[0].bfloat16().double())


def test_an_attack_moves_where_gradients_are_switched_off(observed: Observation) -> None:
    for batched in (False, True):
        with torch.no_grad():
            result = attack(LATENT_PHASE)(observed, batched=batched)
        assert len(set(columns(result)[:, 0].tolist())) == LATENT_PHASE.steps


# -- restarts that break ---------------------------------------------------------------


class Fragile(Stage):
    """Returns NaN for a latent whose first number is large."""

    def forward(self, state: State) -> State:
        x = state["x"]
        return {"x": torch.where(x[:, :1] > 50, torch.nan, x)}


class WithBadLatents:
    """Latents that give NaN at the given indices."""

    def __init__(self, *bad: int) -> None:
        self.bad = list(bad)

    def __call__(self, count: int, rng: torch.Generator) -> State:
        x = one_after_the_other(count, rng)["x"]
        if count > 1:  # the single one is the generator's own look at its images
            x[self.bad, 0] = 100.0
        return {"x": x}


def fragile(*bad: int) -> Generator:
    prior = generator(stages=[Fragile()])
    return Generator(prior.stages, latent=WithBadLatents(*bad), image_range=(0.0, 1.0))


@pytest.mark.parametrize("batched", [False, True])
def test_a_broken_restart_is_dropped_and_the_others_go_on(
    observed: Observation, batched: bool
) -> None:
    phases = (dataclasses.replace(LATENT_PHASE, constraints={}), FEATURE_PHASE)
    result = attack(*phases, prior=fragile(1))(observed, batched=batched)
    whole = attack(*phases, prior=fragile())(observed, batched=batched)
    assert (result.dropped, result.phases[0].dropped) == ((1,), (1,))
    assert result.phases[1].restarts == (0, 2)
    assert columns(result)[:, 1].isnan().all()
    for index, others in ((0, [0, 2]), (1, [0, 1])):
        expected = columns(whole, index)[:, [0, 2]]
        assert torch.allclose(columns(result, index)[:, others], expected, rtol=1e-9)
    assert whole.dropped == ()
    assert result.evaluations == 3 + 2 * (LATENT_PHASE.steps - 1) + 2 * FEATURE_PHASE.steps
    assert bool(torch.isfinite(result.images).all())


def test_when_every_restart_is_broken_there_is_no_answer(observed: Observation) -> None:
    with pytest.raises(ModelError, match="got none from any of 3 restarts") as error:
        attack(LATENT_PHASE, prior=fragile(0, 1, 2))(observed)
    one_line(error)


def test_a_restart_that_breaks_later_is_dropped_too(observed: Observation) -> None:
    phase = dataclasses.replace(LATENT_PHASE, optimizer=Strays(0, after=2, to=torch.nan))
    result = attack(phase, FEATURE_PHASE)(observed)
    assert result.phases[0].dropped == (0,)
    assert columns(result)[:, 0].isfinite().tolist() == [True, True, False, False, False]
    assert columns(result)[:, 1:].isfinite().all()
    assert result.phases[1].restarts == (1, 2)


# -- interruption ----------------------------------------------------------------------


def interrupt_at(phase: str, step: int) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if (progress.phase, progress.step) == (phase, step):
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(("phase", "step"), [("latent", 1), ("feature 1", 2), ("pixels", 3)])
def test_ctrl_c_returns_the_best_so_far(observed: Observation, phase: str, step: int) -> None:
    run = attack(*ALL)
    result, whole = run(observed, callback=interrupt_at(phase, step)), run(observed)
    names = [p.name for p in ALL]
    index = names.index(phase)
    assert result.interrupted
    assert not whole.interrupted
    assert [p.name for p in result.phases] == names[: index + 1]
    assert len(result.phases[index].curve) == step
    assert result.phases[index].curve == whole.phases[index].curve[:step]
    assert result.evaluations == 3 * (sum(p.steps for p in ALL[:index]) + step)
    assert result.distance == pytest.approx(
        min(float(columns(result, i).min()) for i in range(index + 1)), rel=1e-6
    )
    assert result.images.shape == (1, 3, 8, 8)


@dataclasses.dataclass(frozen=True)
class Interrupts(Regularizer):
    """Ctrl-C in the middle of an evaluation."""

    def __call__(self, candidate: Candidate) -> Tensor:
        raise KeyboardInterrupt


def test_ctrl_c_before_anything_was_found_is_passed_on(observed: Observation) -> None:
    with pytest.raises(KeyboardInterrupt):
        attack(dataclasses.replace(LATENT_PHASE, regularizers=(Interrupts(),)))(observed)
    later = dataclasses.replace(FEATURE_PHASE, regularizers=(Interrupts(),))
    result = attack(LATENT_PHASE, later)(observed)
    assert (result.interrupted, result.phase) == (True, "latent")


# -- limits ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Watch(Follows):
    """Adam that records all variables."""

    seen: list[Tensor]
    adam: Adam

    def step(
        self, memory: Memory, x: Tensor, gradient: Tensor, objective: Tensor, noise: Tensor | None
    ) -> tuple[Memory, Tensor]:
        self.seen.append(x[0].clone())  # (R, M)
        return super().step(memory, x, gradient, objective, noise)


def watched(phase: Phase, lr: float = 1.0) -> tuple[Phase, list[Tensor]]:
    seen: list[Tensor] = []
    watch = Watch(seen, Adam(lr=lr, schedule=Constant()))
    return dataclasses.replace(phase, optimizer=watch), seen


def test_constraints_hold_at_every_step(observed: Observation) -> None:
    latent, on_sphere = watched(LATENT_PHASE)
    feature, in_ball = watched(FEATURE_PHASE)
    result = attack(latent, feature)(observed)
    entry = on_sphere[0]
    for variables in on_sphere:
        assert torch.allclose(variables.norm(dim=1), entry.norm(dim=1))
    assert not torch.allclose(on_sphere[-1], entry, atol=0.1)
    entry = in_ball[0]
    radii = 0.2 * entry.abs().sum(1)
    moved = torch.stack([(variables - entry).abs().sum(1) for variables in in_ball])
    assert (moved <= radii * (1 + 1e-6)).all()
    assert torch.allclose(moved[-1], radii)
    assert len(on_sphere) == LATENT_PHASE.steps
    assert 0 <= result.images.min() <= result.images.max() <= 1


def test_pixels_stay_images(smooth: Model, observed: Observation) -> None:
    pixels, seen = watched(PIXEL_PHASE, lr=2.0)
    attack(LATENT_PHASE, pixels)(observed)
    images = torch.stack([smooth.denormalize(x.reshape(3, 3, 8, 8)) for x in seen])
    assert images.min() > -1e-9
    assert images.max() < 1 + 1e-9
    assert (images[-1] < 1e-9).any()


def test_only_what_is_searchable_moves(observed: Observation) -> None:
    class Carries(Stage):
        searchable = ("style",)

        def forward(self, state: State) -> State:
            return {"x": state["x"] + state["style"], "style": state["style"]}

    def latent(count: int, rng: torch.Generator) -> State:
        state = one_after_the_other(count, rng)
        return {**state, "style": one_after_the_other(count, rng)["x"]}

    stages = [Carries(), *generator().stages]
    prior = Generator(stages, latent=latent, image_range=(0.0, 1.0), searchable=("x", "style"))
    first, at_latent = watched(dataclasses.replace(LATENT_PHASE, constraints={}))
    second, at_feature = watched(dataclasses.replace(FEATURE_PHASE, constraints={}))
    result = attack(first, second, prior=prior)(observed)
    assert at_latent[0].shape == (3, 6 + 6)
    assert at_feature[0].shape == (3, 6)
    assert torch.allclose(columns(result, 1)[0], columns(result).min(0).values)


@pytest.mark.parametrize("schedule", [Constant(), StepDecay(), WarmupCosine()], ids=repr)
def test_a_phase_moves_by_its_schedule(observed: Observation, schedule: Schedule) -> None:
    """A signed step of Adam is at most the rate, and equal to it if the signs agree."""
    steps, moved = 16, []

    class Measured(Follows):
        adam = Adam(lr=1e-3, schedule=schedule, signed=True)

        def step(
            self,
            memory: Memory,
            x: Tensor,
            gradient: Tensor,
            objective: Tensor,
            noise: Tensor | None,
        ) -> tuple[Memory, Tensor]:
            memory, after = super().step(memory, x, gradient, objective, noise)
            moved.append(float((after - x).abs().max()))
            return memory, after

    phase = Phase(name="latent", space=Latent(), steps=steps, optimizer=Measured())
    attack(phase, restarts=1)(observed)
    rates = [1e-3 * schedule((step + 1) / steps) for step in range(steps)]
    assert moved == pytest.approx(rates, rel=1e-6)


@pytest.mark.parametrize("batched", [False, True])
def test_what_shows_in_no_image_stays_where_it_was(observed: Observation, batched: bool) -> None:
    """Like a noise map of a block that a smaller image does not need."""

    class Leaves(Stage):
        searchable = ("x", "spare")

        def forward(self, state: State) -> State:
            return {"x": state["x"], "spare": state["spare"]}

    def latent(count: int, rng: torch.Generator) -> State:
        state = one_after_the_other(count, rng)
        return {**state, "spare": one_after_the_other(count, rng)["x"]}

    stages = [Leaves(), *generator().stages]
    prior = Generator(stages, latent=latent, image_range=(0.0, 1.0), searchable=("x", "spare"))
    phase, seen = watched(dataclasses.replace(LATENT_PHASE, constraints={}))
    attack(phase, prior=prior)(observed, batched=batched)
    assert torch.equal(seen[-1][:, 6:], seen[0][:, 6:])
    assert not torch.allclose(seen[-1][:, :6], seen[0][:, :6], atol=0.1)


# -- counting and reporting ------------------------------------------------------------


def test_every_evaluation_is_counted(smooth: Model, pictures: Pictures) -> None:
    calls = 0

    def counted(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(logits, labels)

    model = Model(module=smooth.module, loss=counted)
    client = Client(model=model, grant_labels=True)  # to read them asks the loss too
    observation = observe(client.step(pictures(3).double(), torch.tensor([2]))[0])
    layers = dataclasses.replace(FEATURE_PHASE, distance=LayerCosine())
    run = attack(dataclasses.replace(LATENT_PHASE, keep=2), layers, PIXEL_PHASE)
    told: list[Progress] = []
    calls = 0
    result = run(observation, callback=told.append)
    assert result.evaluations == calls == 3 * 5 + 2 * (3 + 1) + 2 * 3
    assert {progress.evaluations_planned for progress in told} == {calls}
    assert run.planned_evaluations == calls


def test_the_callback_is_told_of_every_step(observed: Observation) -> None:
    told: list[Progress] = []
    result = attack(*ALL)(observed, callback=told.append)
    assert [(p.phase, p.step) for p in told] == [
        (phase.name, step + 1) for phase in ALL for step in range(phase.steps)
    ]
    assert [p.evaluations for p in told] == [3 * (i + 1) for i in range(len(told))]
    assert {(p.phases, p.restarts) for p in told} == {(3, 3)}
    assert all(p.steps == ALL[p.phase_index].steps for p in told)
    for index, phase in enumerate(result.phases):
        distances = [p.distance for p in told if p.phase_index == index]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == pytest.approx(phase.distance)


class CallbackError(RuntimeError):
    pass


def test_the_victim_is_unchanged_also_after_an_error(
    victim: Model, pictures: Pictures, untouched: Callable[..., AbstractContextManager[None]]
) -> None:
    def fail(progress: Progress) -> None:
        if progress.step == 2:
            raise CallbackError

    smoothed = dataclasses.replace(PIXEL_PHASE, curvature=1.0)
    run = Attack(name="test", reference="none", phases=(smoothed,), restarts=2)
    values = {name: p.clone() for name, p in victim.parameters.items()}
    with untouched(victim.module):
        observation = observe(Client(model=victim).step(pictures(3, side=16), torch.tensor([2]))[0])
        run(observation)
        with pytest.raises(CallbackError):
            run(observation, callback=fail)
    assert all(torch.equal(victim.parameters[name], values[name]) for name in values)


# -- settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol", [FedSGD(), FedAvg(steps=2, lr=0.05, optimizer=SGD(momentum=0.5))], ids=repr
)
def test_an_image_in_the_priors_range_is_approached(smooth: Model, protocol: Protocol) -> None:
    prior = generator()
    truth = prior.sample(1, seed=9)
    observation = observe(Client(model=smooth, protocol=protocol).step(truth, torch.tensor([2]))[0])
    long = dataclasses.replace(LATENT_PHASE, steps=50, constraints={})
    result = attack(long, restarts=1, prior=prior)(observation)
    assert result.labels.tolist() == [2]
    assert result.label_source == "inferred"
    assert result.distance < 1e-3
    start = prior.sample(1, seed=0)
    assert (result.images - truth).square().mean() < 0.1 * (start - truth).square().mean()


def test_a_batch_of_two_with_granted_and_with_estimated_labels(
    smooth: Model, pictures: Pictures
) -> None:
    client = Client(model=smooth, grant_labels=True)
    observation = observe(client.step(pictures(3, 2).double(), torch.tensor([2, 0]))[0])
    result = attack(*ALL)(observation)
    assert result.images.shape == (2, 3, 8, 8)
    assert (result.labels.tolist(), result.label_source) == ([2, 0], "granted")
    assert result.distance < float(columns(result)[0].min())
    ungranted = observe(Client(model=smooth).step(pictures(3, 2).double(), torch.tensor([2, 0]))[0])
    estimated = attack(*ALL)(ungranted)
    assert (estimated.labels.tolist(), estimated.label_source) == ([0, 2], "estimated")


@pytest.mark.parametrize("batched", [False, True])
def test_uncertain_labels_travel_over_the_restarts(
    smooth: Model, pictures: Pictures, batched: bool
) -> None:
    """A bias gradient with an error that makes the estimate wrong and the true labels second."""
    clear = observe(Client(model=smooth).step(pictures(3, 2).double(), torch.tensor([0, 2]))[0])
    bias = smooth.head((3, 8, 8)).bias
    assert bias is not None
    tilt = torch.tensor([0.0, -0.27, 0.27, 0.0]).double()
    update = Update({n: t + tilt if n == bias else t for n, t in clear.update.items()})
    observation = dataclasses.replace(clear, update=update)
    known, source = label_hypotheses(observation, most=3)
    assert (known.tolist(), source) == ([[0, 1], [0, 2], [0, 3]], "estimated")
    found = attack(*ALL, restarts=3)(observation, batched=batched)
    assert (found.labels.tolist(), found.hypotheses) == ([0, 2], 3)
    assert found.phases[-1].best_restart == 1
    alone = attack(*ALL, restarts=1)(observation, batched=batched)
    assert (alone.labels.tolist(), alone.hypotheses) == ([0, 1], 1)
    assert alone.distance > found.distance


def test_a_prior_of_another_size_is_refused(observed: Observation) -> None:
    with pytest.raises(InputError, match="images of 3 x 8 x 8, got Generator") as error:
        attack(LATENT_PHASE, prior=generator(size=16))(observed)
    one_line(error)


@pytest.mark.parametrize(
    ("phases", "reason"),
    [
        ((dataclasses.replace(FEATURE_PHASE, space=Feature(2)), FEATURE_PHASE), "order"),
        ((PIXEL_PHASE, LATENT_PHASE), "order"),
        ((dataclasses.replace(FEATURE_PHASE, space=Feature(3)),), "at most 2"),
        ((dataclasses.replace(FEATURE_PHASE, space=Feature(3)), PIXEL_PHASE), "at most 2"),
    ],
)
def test_phases_that_cannot_follow_each_other(
    smooth: Model, pictures: Pictures, phases: tuple[Phase, ...], reason: str
) -> None:
    model = Model(module=smooth.module.float())
    observation = observe(Client(model=model).step(pictures(3), torch.tensor([2]))[0])
    stages = [stage.float() for stage in generator().stages]
    prior = Generator(stages, latent=LATENT, image_range=(0.0, 1.0))
    with pytest.raises(InputError, match=reason) as error:
        attack(*phases, prior=prior)(observation)
    one_line(error)


def test_a_constraint_on_what_is_not_searched_is_named(observed: Observation) -> None:
    with pytest.raises(InputError, match="constraints on what phase 'latent' searches") as error:
        attack(dataclasses.replace(LATENT_PHASE, constraints={"y": Sphere()}))(observed)
    one_line(error)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: attack(),
        lambda: attack(LATENT_PHASE, restarts=0),
        lambda: Attack(name="test", reference="none", phases=(LATENT_PHASE,)),
        lambda: dataclasses.replace(LATENT_PHASE, steps=0),
        lambda: dataclasses.replace(LATENT_PHASE, curvature=-1.0),
        lambda: dataclasses.replace(LATENT_PHASE, keep=0),
        lambda: Feature(0),
        lambda: attack(*ALL).with_steps(2),
    ],
)
def test_what_cannot_be_run_is_refused_at_construction(mistake: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="expected") as error:
        mistake()
    one_line(error)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.integers(0, 3000))
def test_steps_are_dealt_in_proportion_and_to_the_last_one(steps: list[int], extra: int) -> None:
    pixels = [dataclasses.replace(PIXEL_PHASE, name=str(i), steps=n) for i, n in enumerate(steps)]
    run = Attack(name="test", reference="none", phases=tuple(pixels))
    total = len(steps) + extra
    dealt = [phase.steps for phase in run.with_steps(total).phases]
    assert sum(dealt) == total
    assert min(dealt) >= 1
    assert [p.name for p in run.with_steps(total).phases] == [p.name for p in pixels]
    assert run.with_steps(sum(steps)) == run
    shares = [total * n / sum(steps) for n in steps]
    if min(shares) >= 2:
        assert all(abs(n - share) <= 1 for n, share in zip(dealt, shares, strict=True))


def test_its_description_is_plain(observed: Observation) -> None:
    run = attack(*ALL)
    described = json.loads(json.dumps(run.describe()))
    assert described["prior"] == repr(run.prior)
    assert [phase["steps"] for phase in described["phases"]] == [5, 3, 3]
    assert described["phases"][1]["constraints"] == {"x": repr(L1Ball(share=0.2))}


# -- the gradient ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Probe(Optimizer):
    """Compares the gradient with central differences in each direction."""

    directions: Sequence[Tensor]
    size: float
    kept: dict[str, Tensor]

    def init(self, x: Tensor, steps: int) -> Memory:
        places = [x]
        for direction in self.directions:
            away = self.size * direction.reshape(x.shape)
            places += [x + away, x - away]
        return {"places": torch.stack([*places, x])}

    def step(
        self, memory: Memory, x: Tensor, gradient: Tensor, objective: Tensor, noise: Tensor | None
    ) -> tuple[Memory, Tensor]:
        self.kept.setdefault("gradient", gradient[0].clone())
        self.kept.setdefault("centre", x[0].clone())
        places = memory["places"][1:]
        return {"places": places}, places[0]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("distance", [Cosine(), Squared(), LayerCosine(norm=0.3)], ids=repr)
@pytest.mark.parametrize(
    ("space", "shape"), [(Latent(), (2, 1, *LATENT)), (Feature(1), (2, 1, 5, 4, 4))]
)
def test_the_gradient_is_that_of_finite_differences(
    observed: Observation,
    smooth: Model,
    space: Latent | Feature,
    shape: tuple[int, ...],
    distance: Cosine | Squared | LayerCosine,
    batched: bool,
) -> None:
    rng = torch.Generator().manual_seed(5)
    directions = [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2)]
    regularizers = (TotalVariation(weight=0.1), ImageNorm(weight=0.5))
    kept: dict[str, Tensor] = {}
    size = 1e-5
    phase = Phase(
        name="probe",
        space=space,
        steps=5,
        distance=distance,
        regularizers=regularizers,
        optimizer=Probe(directions, size, kept),
    )
    prior = generator()
    result = attack(phase, restarts=2, prior=prior)(observed, batched=batched)
    distances = columns(result)

    def penalty(x: Tensor) -> Tensor:
        depth = 0 if isinstance(space, Latent) else 1
        inputs = [smooth.normalize(prior[depth:]({"x": restart})["x"]) for restart in x]
        seen = [Candidate(inputs=each) for each in inputs]
        return torch.stack([torch.stack([r(each) for r in regularizers]).sum() for each in seen])

    for index, direction in enumerate(directions):
        ahead, behind = distances[1 + 2 * index], distances[2 + 2 * index]
        centre = kept["centre"].reshape(shape)
        bend = penalty(centre + size * direction) - penalty(centre - size * direction)
        slopes = (ahead - behind + bend) / (2 * size)
        analytic = (kept["gradient"].reshape(shape) * direction).flatten(1).sum(1)
        assert torch.allclose(analytic, slopes, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batched", [False, True])
def test_the_gradient_bends_by_the_phases_own_width(pictures: Pictures, batched: bool) -> None:
    """Compared with autograd under the same smoothed curvature, on ReLUs in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(module=ConvNet(4, width=4).double().eval())
    upload, _ = Client(model=model).step(pictures(3, side=16).double(), torch.tensor([2]))
    observation = observe(upload)
    prior = generator(size=16)
    found = []
    for width in (0.0, 0.3, 2.0):
        kept: dict[str, Tensor] = {}
        phase = Phase(
            name="probe",
            space=Latent(),
            steps=1,
            optimizer=Probe((), 0.0, kept),
            curvature=width,
        )
        attack(phase, restarts=1, prior=prior)(observation, batched=batched)
        x = kept["centre"].reshape(1, *LATENT).requires_grad_()
        with smoothed_curvature(width):
            replayed = observation.replay(prior({"x": x})["x"], torch.tensor([2]))
        (slope,) = torch.autograd.grad(Cosine()(replayed, observation.update), x)
        gradient = kept["gradient"].reshape(slope.shape)
        assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-14)
        found.append(slope)
    apart = [(a - b).norm() / b.norm() for a, b in itertools.combinations(found, 2)]
    assert min(apart) > 1e-2, "each width has a gradient of its own"
