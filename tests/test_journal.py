"""A run that was interrupted and goes on gives what one that was not gives, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gifd import attacks, terminal
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, Reconstruction
from gifd.campaign.store import Store
from gifd.cli import app
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.images import write_image
from gifd.model import Model
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.search import Callback, Journal, Progress
from gifd.victims import ConvNet

SEVERAL: dict[str, Callable[[Generator], Attack]] = {
    "gifd": lambda prior: attacks.gifd(prior, restarts=2).with_steps(12),
    "gifd of the paper": lambda prior: attacks.gifd(prior, preset="paper", restarts=3).with_steps(
        10
    ),
    "gias": lambda prior: attacks.gias(prior, restarts=2).with_steps(8),
    "ensemble": lambda prior: attacks.ensemble(prior, rounds=2).with_evaluations(24),
    "ensemble of pixels": lambda prior: attacks.ensemble(
        prior, rounds=2, features=0
    ).with_evaluations(24),
}


@pytest.fixture(scope="module")
def prior() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(dcgan_stages(latent=8, width=8, channels=3, doublings=2), latent=(8, 1, 1))


@pytest.fixture(scope="module")
def observation(prior: Generator) -> Observation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Model(module=ConvNet(6, width=8).eval())
    images = prior.sample(2, seed=3).clamp(0, 1)
    client = Client(model=model, grant_labels=True)
    return observe(client.step(images, torch.tensor([2, 5]))[0])


def stopping(index: int) -> Callable[[Progress], None]:
    """Ctrl-C at the first step of the phase with this number."""
    names: list[str] = []

    def callback(now: Progress) -> None:
        if now.phase not in names:
            names.append(now.phase)
        if len(names) > index:
            raise KeyboardInterrupt

    return callback


def equal(one: Reconstruction, other: Reconstruction) -> bool:
    def same(a: Tensor, b: Tensor) -> bool:
        return torch.equal(a, b)

    return (
        same(one.images, other.images)
        and same(one.labels, other.labels)
        and (one.distance, one.phase, one.evaluations, one.dropped, one.interrupted)
        == (other.distance, other.phase, other.evaluations, other.dropped, other.interrupted)
        and len(one.phases) == len(other.phases)
        and all(
            same(a.images, b.images)
            and same(a.labels, b.labels)
            and (a.name, a.distance, a.curve, a.measure, a.restarts, a.best_restart, a.dropped)
            == (b.name, b.distance, b.curve, b.measure, b.restarts, b.best_restart, b.dropped)
            and (a.agreement, a.evaluations) == (b.agreement, b.evaluations)
            for a, b in zip(one.phases, other.phases, strict=True)
        )
    )


@pytest.mark.parametrize("kind", SEVERAL)
def test_resumed_equals_uninterrupted(
    kind: str, prior: Generator, observation: Observation, tmp_path: Path
) -> None:
    attack = SEVERAL[kind](prior)
    whole = attack(observation, seed=4)
    for index in range(1, len(attack.phases)):
        journal = Journal(path=tmp_path / f"{index}.safetensors")
        cut = attack(observation, seed=4, journal=journal, callback=stopping(index))
        assert cut.interrupted
        assert journal.path.is_file()
        resumed = attack(observation, seed=4, journal=journal)
        assert equal(resumed, whole), f"after an interruption in phase {index}"
        assert not journal.path.exists(), "a complete run leaves nothing"


def test_it_goes_on_where_it_was_and_not_from_the_beginning(
    prior: Generator, observation: Observation, tmp_path: Path
) -> None:
    attack = SEVERAL["gifd"](prior)
    journal = Journal(path=tmp_path / "run.safetensors")
    attack(observation, journal=journal, callback=stopping(2))
    seen: list[str] = []
    attack(observation, journal=journal, callback=lambda now: seen.append(now.phase))
    names = [phase.name for phase in attack.phases]
    assert list(dict.fromkeys(seen)) == names[2:]


def test_several_interruptions_change_nothing(
    prior: Generator, observation: Observation, tmp_path: Path
) -> None:
    attack = SEVERAL["gifd of the paper"](prior)
    journal = Journal(path=tmp_path / "run.safetensors")
    for index in (1, 1, 2):  # counted from where it goes on
        attack(observation, journal=journal, callback=stopping(index))
    assert equal(attack(observation, journal=journal), attack(observation))


def test_the_journal_of_another_run_is_refused(
    prior: Generator, observation: Observation, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    attack = SEVERAL["gifd"](prior)
    attack(observation, journal=Journal(path=path, key="a"), callback=stopping(1))
    with pytest.raises(InputError, match="that of other settings: delete it"):
        attack(observation, journal=Journal(path=path, key="b"))
    with pytest.raises(InputError, match="that of other settings"):
        SEVERAL["gias"](prior)(observation, journal=Journal(path=path, key="a"))
    path.write_bytes(b"no journal")
    with pytest.raises(InputError, match="expected a journal of gifd") as error:
        attack(observation, journal=Journal(path=path, key="a"))
    assert "\n" not in str(error.value)


def test_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gifd attack`, stopped by Ctrl-C and repeated with the same --out."""
    write_image(
        torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(2)), tmp_path / "p.png"
    )
    given = ["attack", str(tmp_path / "p.png"), "--attack", "gifd", "--victim", "convnet"]
    given += ["--steps", "10", "--restarts", "1", "--prior-option", "resolution=32", "--size", "32"]

    @contextmanager
    def stopped(title: str) -> Iterator[Callback]:
        yield stopping(2)

    def run(out: str) -> int:
        return CliRunner().invoke(app, [*given, "--out", str(tmp_path / out)]).exit_code

    with monkeypatch.context() as patched:
        patched.setattr(terminal, "progress", stopped)
        assert run("cut") == 130
    assert list((tmp_path / "cut" / "unfinished").iterdir())
    assert run("cut") == 0
    assert not (tmp_path / "cut" / "unfinished").exists()
    assert run("whole") == 0
    cut, resumed = (stored.record for stored in Store(tmp_path / "cut"))
    (whole,) = (stored.record for stored in Store(tmp_path / "whole"))
    assert cut.interrupted
    assert not resumed.interrupted
    assert (resumed.distance, resumed.psnr, resumed.evaluations) == (
        whole.distance,
        whole.psnr,
        whole.evaluations,
    )
    assert [p.curve for p in resumed.phases] == [p.curve for p in whole.phases]
