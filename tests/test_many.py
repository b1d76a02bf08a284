"""Several observations in one call give the results of each alone."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, Reconstruction
from gifd.errors import InputError, ModelError, NotBegunError
from gifd.federation.client import Client
from gifd.federation.defenses import Defense, Noise, Sparsify
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.model import Model
from gifd.priors import State
from gifd.search import (
    Beginning,
    Draw,
    GroupConsistency,
    Initializer,
    Latent,
    Phase,
    Progress,
    Regression,
    SearchContext,
    Standing,
    TotalVariation,
)
from gifd.updates import Update
from gifd.victims import ConvNet
from golden import runs

pytestmark = pytest.mark.numerical

Pictures = Callable[..., Tensor]
SEEDS = (7, 3, 11)


@pytest.fixture(scope="module")
def model() -> Model:
    """ReLUs and batch norm in float64, 16 px, 4 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ConvNet(4, width=4).eval().double()
    return Model(module=module, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def observations(
    model: Model,
    pictures: Pictures,
    *,
    batch: int = 1,
    protocol: Protocol | None = None,
    defenses: tuple[Defense, ...] = (),
) -> list[Observation]:
    """Observations of three clients, each with its own images and labels."""
    found = []
    for index in range(len(SEEDS)):
        client = Client(
            model=model,
            protocol=protocol or FedSGD(),
            grant_labels=batch > 1,
            grant_batch_norm="batch",
            defenses=defenses,
            seed=index,
        )
        labels = (torch.arange(batch) + index) % 4
        upload, _ = client.step(pictures(20 + index, batch, 16).double(), labels)
        found.append(observe(upload, defenses=defenses))
    return found


def answers(found: Sequence[Reconstruction | Exception]) -> list[Reconstruction]:
    assert all(isinstance(each, Reconstruction) for each in found), found
    return [each for each in found if isinstance(each, Reconstruction)]


def assert_same(one: Reconstruction, other: Reconstruction) -> None:
    assert (one.phase, one.labels.tolist()) == (other.phase, other.labels.tolist())
    assert (one.evaluations, one.dropped) == (other.evaluations, other.dropped)
    assert one.distance == pytest.approx(other.distance, rel=1e-6)
    assert torch.allclose(one.images, other.images, atol=1e-5)
    for ours, theirs in zip(one.phases, other.phases, strict=True):
        assert (ours.name, ours.best_restart) == (theirs.name, theirs.best_restart)
        assert (ours.restarts, ours.evaluations) == (theirs.restarts, theirs.evaluations)
        curve, expected = (torch.tensor(each.curve, dtype=torch.float64) for each in (ours, theirs))
        assert torch.allclose(curve, expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("preset", ["paper", "strongest"])
@pytest.mark.parametrize("name", [name for name in catalog.ATTACKS if name != "peel"])
def test_together_is_one_by_one(
    name: str, preset: str, batched: bool, model: Model, pictures: Pictures
) -> None:
    """Every attack, with populations, regressions, group consistency and consensus."""
    attack, seen = runs.attack(name, preset), observations(model, pictures)
    together = answers(attack.many(seen, seeds=SEEDS, batched=batched, at_once=3))
    for observation, seed, found in zip(seen, SEEDS, together, strict=True):
        alone = attack(observation, seed=seed, batched=False)
        assert_same(found, alone)
        assert (found.at_once, alone.at_once, found.seed) == (3, 1, seed)
    assert not torch.allclose(together[0].images, together[1].images, atol=1e-3)


@pytest.mark.parametrize(
    ("protocol", "defenses"),
    [
        (FedAvg(steps=2, lr=0.05), ()),
        (FedSGD(), (Sparsify(rate=0.5),)),  # each attacker believes in zeros of its own
        (FedSGD(), (Noise(std=0.01),)),
        (
            FedAvg(steps=2, lr=0.05, optimizer=SGD(momentum=0.5)),
            (Noise(std=0.001), Sparsify(rate=0.5)),
        ),
    ],
    ids=str,
)
def test_each_is_replayed_by_its_own_protocol(
    protocol: Protocol, defenses: tuple[Defense, ...], model: Model, pictures: Pictures
) -> None:
    attack = runs.attack("gifd", "strongest")
    seen = observations(model, pictures, batch=2, protocol=protocol, defenses=defenses)
    together = answers(attack.many(seen, seeds=SEEDS, batched=True, at_once=3))
    for observation, seed, found in zip(seen, SEEDS, together, strict=True):
        assert_same(found, attack(observation, seed=seed, batched=False))


@pytest.mark.parametrize("at_once", [1, 2, 3, None])
def test_how_many_at_once_changes_nothing(
    at_once: int | None, model: Model, pictures: Pictures
) -> None:
    attack, seen = runs.attack("ig", "paper"), observations(model, pictures)
    told: list[Progress] = []
    found = answers(attack.many(seen, seeds=SEEDS, callback=told.append, at_once=at_once))
    for observation, seed, each in zip(seen, SEEDS, found, strict=True):
        assert_same(each, attack(observation, seed=seed))
    assert [each.at_once for each in found] == {1: [1, 1, 1], 2: [2, 2, 1], 3: [3, 3, 3]}.get(
        at_once or 1
    )
    planned = 3 * attack.planned_evaluations
    assert {now.evaluations_planned for now in told} == {planned}
    assert told[-1].evaluations == planned == sum(each.evaluations for each in found)
    counts = [now.evaluations for now in told]
    assert counts == sorted(counts)


def test_what_cannot_be_searched_at_once_is_searched_apart(
    model: Model, pictures: Pictures
) -> None:
    """Another model, or another number of images."""
    other = Model(module=model.module, mean=model.mean, std=(0.3, 0.3, 0.3))
    seen = [
        observations(model, pictures)[0],
        observations(other, pictures)[1],
        observations(model, pictures, batch=2)[2],
    ]
    attack = runs.attack("gifd", "paper")
    found = answers(attack.many(seen, seeds=SEEDS, at_once=3))
    assert [each.at_once for each in found] == [1, 1, 1]
    for observation, seed, each in zip(seen, SEEDS, found, strict=True):
        assert_same(each, attack(observation, seed=seed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hungry(Latent):  # type: ignore[misc]  # final, but a prior of this size never runs out
    """Runs out of memory where it shows more than so many searches at once."""

    most: int = 99

    def pictures(self, context: SearchContext, state: State) -> Tensor:
        if len(state["x"]) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(state['x'])} searches")
        return super().pictures(context, state)


def latent_attack(space: Latent, **settings: object) -> Attack:
    phase = Phase(name="latent", space=space, steps=4, regularizers=(TotalVariation(weight=1e-3),))
    phase = dataclasses.replace(phase, **settings)  # type: ignore[arg-type]
    return Attack(name="t", reference="-", phases=(phase,), restarts=2, prior=runs.prior())


@pytest.mark.parametrize(("most", "fits"), [(1, [3, 2, 1]), (2, [3, 2]), (3, [3])])
def test_half_as_many_until_they_fit(
    most: int,
    fits: list[int],
    model: Model,
    pictures: Pictures,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The images of the best searches, one an observation, are shown at a phase's end."""
    attack, seen = latent_attack(Hungry(most=most)), observations(model, pictures)
    with caplog.at_level(logging.WARNING, logger="gifd"):
        found = answers(attack.many(seen, seeds=SEEDS, batched=True))
    assert max(each.at_once for each in found) == fits[-1]
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{more} observations do not fit the memory at once: {fewer} are tried"
        for more, fewer in itertools.pairwise(fits)
    ]
    for observation, seed, each in zip(seen, SEEDS, found, strict=True):
        assert_same(each, attack(observation, seed=seed))


def test_memory_that_only_the_run_lacks_is_found_there(model: Model, pictures: Pictures) -> None:
    """A regression shows 6 samples for each of two restarts at once, the trial's fewer."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Regresses(Regression):  # type: ignore[misc]
        at: list[int] = dataclasses.field(default_factory=list)

        def __call__(self, beginning: Beginning) -> Standing:
            if self.evaluations > 1 and len(beginning.draws) > 1:
                raise torch.OutOfMemoryError("in the run alone")
            return super().__call__(beginning)

    attack = latent_attack(Latent(), begin=Regresses(evaluations=3))
    seen = observations(model, pictures)
    found = answers(attack.many(seen, seeds=SEEDS, batched=True))
    assert [each.at_once for each in found] == [1, 1, 1]
    for observation, seed, each in zip(seen, SEEDS, found, strict=True):
        assert_same(each, attack(observation, seed=seed))


def test_what_does_not_fit_alone_is_told(model: Model, pictures: Pictures) -> None:
    attack = latent_attack(Hungry(most=0))
    found = attack.many(observations(model, pictures), seeds=SEEDS, batched=True)
    assert all(isinstance(each, InputError) for each in found)
    assert "expected memory for one restart of one observation" in str(found[0])


def test_each_kind_has_its_own_number_at_once(model: Model, pictures: Pictures) -> None:
    several = observations(model, pictures)
    two = observations(model, pictures, batch=2)[0]
    found = answers(latent_attack(Latent()).many([two, *several], seeds=[9, *SEEDS], batched=True))
    assert [each.at_once for each in found] == [1, 3, 3, 3]


def test_one_that_fails_within_the_search_does_not_stop_the_others(
    model: Model, pictures: Pictures
) -> None:
    """A head without a gradient: the labels are granted, a regression has nothing to read."""
    seen = observations(model, pictures, batch=2)
    head = model.head((3, 16, 16)).weight
    zeros = {n: 0 * t if n == head else t for n, t in seen[1].update.items()}
    broken = dataclasses.replace(seen[1], update=Update(zeros))
    attack = latent_attack(Latent(), begin=Regression(evaluations=3))
    one, two, three = attack.many([seen[0], broken, seen[2]], seeds=SEEDS, at_once=3)
    assert isinstance(two, ModelError)
    assert "zeros only" in str(two)
    for each, observation, seed in ((one, seen[0], 7), (three, seen[2], 11)):
        assert isinstance(each, Reconstruction)
        assert_same(each, attack(observation, seed=seed))


@pytest.mark.parametrize("dead_first", [False, True])
def test_a_fallen_image_does_not_take_the_others_group(
    dead_first: bool, model: Model, pictures: Pictures
) -> None:
    class Breaks(Latent):  # type: ignore[misc]
        def start(self, context: SearchContext, draw: Draw) -> State:
            state = super().start(context, draw)
            if draw.rng.initial_seed() == SEEDS[1]:
                state["x"][:] = torch.nan
            return state

    group = GroupConsistency(weight=10.0, begin=0.5, register=False)
    attack, seen = latent_attack(Breaks(), regularizers=(group,)), observations(model, pictures)
    order = [1, 0] if dead_first else [0, 1]
    found = attack.many(
        [seen[i] for i in order], seeds=[SEEDS[i] for i in order], batched=True, at_once=2
    )
    alive = found[order.index(0)]
    assert isinstance(alive, Reconstruction)
    assert_same(alive, attack(seen[0], seed=SEEDS[0]))
    without = latent_attack(Breaks(), regularizers=())(seen[0], seed=SEEDS[0])
    assert alive.phases[0].curve[-1] != without.phases[0].curve[-1]


def test_one_that_fails_does_not_stop_the_others(model: Model, pictures: Pictures) -> None:
    seen = observations(model, pictures)
    weight = model.head((3, 16, 16)).weight
    zeros = seen[1].update.map(torch.zeros_like)
    broken = dataclasses.replace(seen[1], update=zeros)
    attack = runs.attack("gifd", "paper")
    one, two, three = attack.many([seen[0], broken, seen[2]], seeds=SEEDS, at_once=3)
    assert isinstance(two, ModelError)
    assert weight in seen[1].update
    for each, observation, seed in ((one, seen[0], 7), (three, seen[2], 11)):
        assert isinstance(each, Reconstruction)
        assert_same(each, attack(observation, seed=seed))


@pytest.mark.parametrize("batched", [False, True])
def test_a_restart_that_falls_is_dropped_from_its_own_image(
    batched: bool, model: Model, pictures: Pictures
) -> None:
    class Breaks(Latent):  # type: ignore[misc]
        """The second restart of the image drawn by the first seed, and both of the second's."""

        def start(self, context: SearchContext, draw: Draw) -> State:
            state = super().start(context, draw)
            if draw.rng.initial_seed() == SEEDS[0]:
                state["x"][1] = torch.nan
            if draw.rng.initial_seed() == SEEDS[1]:
                state["x"][:] = torch.nan
            return state

    attack, seen = latent_attack(Breaks()), observations(model, pictures)
    one, two, three = attack.many(seen, seeds=SEEDS, batched=batched, at_once=3)
    assert isinstance(two, ModelError)
    assert "got none from any of 2 restarts" in str(two)
    assert isinstance(one, Reconstruction)
    assert isinstance(three, Reconstruction)
    assert (one.dropped, three.dropped) == ((1,), ())
    assert (one.evaluations, three.evaluations) == (2 + 3, 2 * 4)
    assert_same(three, attack(seen[2], seed=SEEDS[2]))


def interrupt(now: Progress) -> None:
    if now.step == 3:
        raise KeyboardInterrupt


def test_ctrl_c_returns_the_best_so_far_of_all(model: Model, pictures: Pictures) -> None:
    attack, seen = latent_attack(Latent()), observations(model, pictures)
    found = answers(attack.many(seen, seeds=SEEDS, callback=interrupt, at_once=3))
    assert [each.interrupted for each in found] == [True] * 3
    assert [len(each.phases[0].curve) for each in found] == [3] * 3
    first, *others = attack.many(seen, seeds=SEEDS, callback=interrupt, at_once=1)
    assert isinstance(first, Reconstruction)
    assert first.interrupted
    assert [type(each) for each in others] == [NotBegunError] * 2


class Presses(Initializer):
    """Ctrl-C where a phase begins for the n-th time."""

    evaluations = 0

    def __init__(self, at: int) -> None:
        self.at, self.times = at, 0

    def __call__(self, beginning: Beginning) -> Standing:
        self.times += 1
        if self.times == self.at:
            raise KeyboardInterrupt
        return beginning.entered(beginning.before)


def test_ctrl_c_where_something_begins(model: Model, pictures: Pictures) -> None:
    several, two = observations(model, pictures), observations(model, pictures, batch=2)[0]

    def attack(at: int) -> Attack:
        return latent_attack(Latent(), begin=Presses(at))

    with pytest.raises(KeyboardInterrupt):  # in the trial, before anything was found
        attack(1).many(several, seeds=SEEDS, batched=True)
    zeros = dataclasses.replace(several[0], update=several[0].update.map(torch.zeros_like))
    with pytest.raises(KeyboardInterrupt):  # an error is nothing that was found
        attack(1).many([zeros, two], seeds=[1, 2])
    # the trial of three, their run, and the run of the one of another kind
    *found, last = attack(3).many([*several, two], seeds=[*SEEDS, 9], batched=True)
    assert [each.interrupted for each in answers(found)] == [False] * 3
    assert isinstance(last, NotBegunError)


@pytest.mark.parametrize(
    "mistake",
    [
        {"seeds": (1, 2)},
        {"seeds": SEEDS, "at_once": 0},
        {"seeds": (1, 2, -3)},
        {"seeds": (1, 2, 2**64)},
    ],
)
def test_a_mistake_is_told_in_one_line(
    mistake: dict[str, object], model: Model, pictures: Pictures
) -> None:
    attack = latent_attack(Latent())
    with pytest.raises(InputError, match="expected") as error:
        attack.many(observations(model, pictures), **mistake)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_lists_of_any_kind_will_do(model: Model, pictures: Pictures) -> None:
    attack, seen = latent_attack(Latent()), observations(model, pictures)
    found = answers(attack.many((each for each in seen), seeds=(seed for seed in SEEDS)))
    for observation, seed, each in zip(seen, SEEDS, found, strict=True):
        assert_same(each, attack(observation, seed=seed))
    assert attack.many([], seeds=[]) == []
