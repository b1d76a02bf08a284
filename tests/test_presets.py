"""The settings of each paper's attack, number by number, written independently."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from gifd import catalog
from gifd.attacks import Preset, ggl, gifd
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.search import (
    CMAES,
    LBFGS,
    Adam,
    BatchNormPrior,
    GradientRegularized,
    GroupConsistency,
    ImageNorm,
    L1Ball,
    LatentDivergence,
    Optimizer,
    PartialMatching,
    Phase,
    Pixels,
    Population,
    Regularizer,
    Squared,
    StepDecay,
    TotalVariation,
    WarmupCosine,
)

TENTHS = StepDecay(milestones=(0.375, 0.625, 0.875), factor=0.1)
COSINE = WarmupCosine(warmup=1e-9, decay=1.0)
SLOW = WarmupCosine(warmup=50 / 20_000, decay=1.0)
PAPERS: dict[
    tuple[str, str], tuple[int, list[tuple[int, Optimizer | Population, list[Regularizer]]]]
] = {
    ("dlg", "paper"): (1, [(300 * 20, LBFGS(lr=1.0), [])]),
    ("idlg", "paper"): (1, [(300 * 20, LBFGS(lr=1.0), [])]),
    ("ig", "paper"): (
        1,
        [(24_000, Adam(lr=0.1, schedule=TENTHS, signed=True), [TotalVariation(weight=0.1)])],
    ),
    ("ig", "gifd-paper"): (
        4,
        [(15_000, Adam(lr=0.1, schedule=TENTHS), [TotalVariation(weight=1e-4)])],
    ),
    # the paper weighs the squared distance by 1e-3; here all else is a thousand times heavier
    ("gradinversion", "paper"): (
        8,
        [
            (
                20_000,
                Adam(lr=0.1, schedule=SLOW, noise=0.2),
                [
                    TotalVariation(weight=0.1),
                    ImageNorm(weight=1e-3),
                    GroupConsistency(weight=10.0, register=True),
                    BatchNormPrior(weight=100.0),
                ],
            )
        ],
    ),
    ("gradinversion", "gifd-paper"): (
        4,
        [
            (
                15_000,
                Adam(lr=0.1, schedule=TENTHS),
                [
                    TotalVariation(weight=1e-4),
                    ImageNorm(weight=1e-6),
                    GroupConsistency(weight=0.01, register=False),
                ],
            )
        ],
    ),
    ("ggl", "paper"): (
        1,
        [(25_000, CMAES(population=18, sigma=1.0), [LatentDivergence(weight=0.1)])],
    ),
    ("ggl", "gifd-paper"): (
        4,
        [(800 * 50, CMAES(population=50, sigma=1.0), [LatentDivergence(weight=0.1)])],
    ),
    ("gias", "paper"): (
        3,
        [
            (1000, Adam(lr=0.03, schedule=TENTHS), [TotalVariation(weight=1e-6)]),
            (8000, Adam(lr=1e-3, schedule=TENTHS), [TotalVariation(weight=1e-6)]),
        ],
    ),
    ("gias", "gifd-paper"): (
        4,
        [
            (1000, Adam(lr=0.03, schedule=TENTHS), [TotalVariation(weight=1e-4)]),
            (8000, Adam(lr=1e-3, schedule=TENTHS), [TotalVariation(weight=1e-4)]),
        ],
    ),
    ("fedleak", "paper"): (
        1,
        [
            (
                20_000,  # two a step
                GradientRegularized(lr=0.01, schedule=COSINE, share=0.3, decay=0.01),
                [TotalVariation(weight=1e-5)],
            )
        ],
    ),
}
DISTANCES = {
    "dlg": Squared(),
    "idlg": Squared(),
    "gradinversion": Squared(),
    "ggl": Squared(mean=True),
    "fedleak": PartialMatching(share=0.5),
}


@pytest.fixture(scope="module")
def prior() -> Generator:
    """A DCGAN of 16 px, of which only the shape matters here."""
    return Generator(dcgan_stages(latent=8, width=8, channels=3, doublings=2), latent=(8, 1, 1))


@pytest.mark.parametrize(("name", "preset"), PAPERS, ids=str)
def test_a_papers_attack_is_set_as_the_paper_has_it(
    name: str, preset: Preset, prior: Generator
) -> None:
    attack = catalog.attack(name, prior=prior, preset=preset)
    restarts, phases = PAPERS[name, preset]
    assert attack.restarts == restarts
    assert [phase.steps for phase in attack.phases] == [steps for steps, _, _ in phases]
    for phase, (_, optimizer, regularizers) in zip(attack.phases, phases, strict=True):
        assert list(phase.regularizers) == regularizers
        # rules of the engine, such as which iterate is kept, are not numbers of the paper
        assert type(phase.optimizer) is type(optimizer)
        for field in ("lr", "schedule", "signed", "noise", "share", "decay", "population", "sigma"):
            assert getattr(phase.optimizer, field, None) == getattr(optimizer, field, None), field
        if name in DISTANCES and preset == "paper":
            assert phase.distance == DISTANCES[name]
        assert (phase.curvature, phase.smoothing) == (0, 0)


@pytest.mark.parametrize("preset", get_args(Preset))
@pytest.mark.parametrize("name", list(catalog.ATTACKS))
def test_an_attack_says_what_it_is(name: str, preset: Preset, prior: Generator) -> None:
    attack = catalog.attack(name, prior=prior, preset=preset, restarts=2)
    assert (attack.name, attack.preset, attack.restarts) == (name, preset, 2)
    assert (attack.prior is prior) == catalog.needs_prior(name)
    assert attack.answer == ("last" if name in ("gifd-last", "ensemble") else "least-distance")
    switched_on = set(attack.extensions)
    assert bool(switched_on) == (preset == "strongest" and name not in ("ensemble", "lti", "peel"))
    bounded = {p.space.bounded for p in attack.phases if isinstance(p.space, Pixels)}
    assert bounded <= {name not in ("dlg", "idlg")}


def test_a_bigger_biggan_is_moved_less(prior: Generator) -> None:
    """GIFD's settings of GIAS: learning rate 1e-5 only in the weights of a BigGAN."""
    deep = Generator(prior.stages, latent=(8, 1, 1), family="biggan-deep")
    for preset, lr in (("paper", 1e-3), ("gifd-paper", 1e-5)):
        optimizer = catalog.attack("gias", prior=deep, preset=preset).phases[-1].optimizer
        assert isinstance(optimizer, Adam)
        assert optimizer.lr == lr


def test_the_group_of_gradinversion_meets_as_gifd_says(prior: Generator) -> None:
    (phase,) = catalog.attack("gradinversion", prior=prior, preset="gifd-paper").phases
    (group,) = (r for r in phase.regularizers if isinstance(r, GroupConsistency))
    due = [step for step in range(phase.steps) if group.due(step, phase.steps)]
    assert due == list(range(500, 15_000, 100))


def test_ggl_begins_nearer_where_a_regression_went_before(prior: Generator) -> None:
    regression, _ = catalog.attack("ggl", prior=prior, preset="strongest").phases
    assert (regression.name, regression.cost) == ("regression", 1000)

    def spread(preset: Preset, regression: float | None = None) -> float:
        optimizer = ggl(prior, preset=preset, regression=regression).phases[-1].optimizer
        assert isinstance(optimizer, CMAES)
        return optimizer.sigma

    assert spread("strongest") == spread("paper", regression=0.5) == pytest.approx(1 / 3)
    assert spread("paper") == 1


def test_the_radii_of_gifd_can_be_chosen(prior: Generator) -> None:
    attack = gifd(prior, preset="paper", features=3, radius=7.0, radius_step=5.0)
    balls = [phase.constraints["x"] for phase in attack.phases[1:]]
    assert balls == [L1Ball(radius=radius) for radius in (7.0, 12.0, 17.0)]


def test_the_ablations_differ_from_gifd_in_what_they_leave_out(prior: Generator) -> None:
    full = catalog.attack("gifd", prior=prior, preset="paper")
    latent = catalog.attack("gifd-latent", prior=prior, preset="paper")
    assert latent.phases == (
        dataclasses.replace(full.phases[0], steps=sum(phase.steps for phase in full.phases)),
    )

    def free(phase: Phase) -> Phase:
        return phase if phase.name == "latent" else dataclasses.replace(phase, constraints={})

    noball = catalog.attack("gifd-noball", prior=prior, preset="paper")
    assert noball.phases == tuple(free(phase) for phase in full.phases)
    assert noball.phases != full.phases
    assert catalog.attack("gifd-last", prior=prior, preset="paper").phases == full.phases
