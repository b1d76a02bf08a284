"""Label mapping: a coarse pass, a classifier over the prior's classes, then the attack proper."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import Attack, LabelMapping, gifd, ig
from gifd.catalog import builders
from gifd.cli import app
from gifd.errors import InputError, WeightsError
from gifd.federation.client import Client
from gifd.images import write_image
from gifd.model import Model
from gifd.priors import (
    Checkpoint,
    Generator,
    Remapper,
    read_remapper,
    stylegan2,
    write_checkpoint,
    write_remapper,
)
from gifd.priors.remapper import RemapperNet
from gifd.search import Candidate, Progress, Regularizer
from gifd.training import ImageSet, train_remapper
from golden.tiny import small_stylegan2


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def prior() -> Generator:
    """16 px, 3 classes."""
    return stylegan2(small_stylegan2(classes=3), latent="z", name="tiny")


@pytest.fixture
def observation(victim: Model, pictures: Callable[..., Tensor]) -> Observation:
    return observe(Client(model=victim).step(pictures(0, side=16), torch.tensor([3]))[0])


def always(label: int) -> LabelMapping:
    return LabelMapping(classify=lambda images: torch.full((len(images),), label), name="oracle")


def mapped(prior: Generator, label: int, steps: int = 20) -> Attack:
    plain = gifd(prior, preset="paper", restarts=1).with_steps(steps)
    return replace(plain, label_mapping=always(label))


def test_the_fine_pass_asks_the_prior_for_the_class_seen_in_the_coarse_one(
    prior: Generator, observation: Observation
) -> None:
    attack = mapped(prior, 2)
    told: list[Progress] = []
    found = attack(observation, seed=1, callback=told.append)
    assert found.prior_labels is not None
    assert found.prior_labels.tolist() == [2]
    assert found.labels.tolist() == [3]  # of the victim's four; the replay keeps it
    names = [phase.name for phase in found.phases]
    assert names == [f"coarse {n}" for n in names[len(names) // 2 :]] + names[len(names) // 2 :]
    assert not found.phase.startswith("coarse")
    assert found.evaluations == attack.planned_evaluations
    assert [now.evaluations for now in told] == list(range(1, found.evaluations + 1))
    assert {now.evaluations_planned for now in told} == {found.evaluations}
    granted = replace(observation, ledger=replace(observation.ledger, labels=torch.tensor([3])))
    straight = replace(attack, label_mapping=None)
    with pytest.raises(InputError, match="expected labels of 0 to 2"):
        straight(granted, seed=1)


def test_the_fine_pass_is_the_attack_with_that_label(
    prior: Generator, victim: Model, pictures: Callable[..., Tensor]
) -> None:
    """If the private label is already right for the prior, only the cost changes."""
    observation = observe(Client(model=victim).step(pictures(0, side=16), torch.tensor([1]))[0])
    attack = mapped(prior, 1)
    one, other = (
        attack(observation, seed=5),
        replace(attack, label_mapping=None)(observation, seed=5),
    )
    assert torch.equal(one.images, other.images)
    assert one.distance == other.distance
    third = mapped(prior, 2)(observation, seed=5)
    assert not torch.equal(one.images, third.images)


@pytest.mark.parametrize("at", [1, 4, 5, 9])
def test_an_interruption_keeps_what_was_found(
    prior: Generator, observation: Observation, at: int
) -> None:
    attack = mapped(prior, 2)
    coarse = sum(phase.steps for phase in always(2).phases(attack.phases))

    def interrupt(now: Progress) -> None:
        if now.evaluations == at:
            raise KeyboardInterrupt

    found = attack(observation, seed=1, callback=interrupt)
    assert found.interrupted
    assert found.evaluations == at
    assert found.phase.startswith("coarse") == (at <= coarse)


@dataclass(frozen=True)
class Stops(Regularizer):
    """Ctrl-C within an evaluation."""

    at: int
    seen: list[Candidate] = field(default_factory=list)

    def __call__(self, candidate: Candidate) -> Tensor:
        self.seen.append(candidate)
        if len(self.seen) == self.at:
            raise KeyboardInterrupt
        return candidate.inputs.new_zeros(())


def test_an_interruption_before_anything_fine_was_found_keeps_the_coarse(
    prior: Generator, observation: Observation
) -> None:
    attack = mapped(prior, 2)
    coarse = sum(phase.steps for phase in always(2).phases(attack.phases))
    stops = Stops(coarse + 1)
    phases = tuple(replace(phase, regularizers=(stops,)) for phase in attack.phases)
    found = replace(attack, phases=phases)(observation)
    assert found.interrupted
    assert found.phase.startswith("coarse")
    assert found.evaluations == coarse
    with pytest.raises(KeyboardInterrupt):
        replace(attack, phases=tuple(replace(p, regularizers=(Stops(1),)) for p in phases))(
            observation
        )


def test_budgets_count_the_coarse_pass(prior: Generator) -> None:
    attack = mapped(prior, 2)
    for budget in (30, 77, 200):
        spent = attack.with_evaluations(budget).planned_evaluations
        assert budget - 4 <= spent <= budget
    latent = attack.phases[0]
    fine = tuple(replace(latent, steps=steps) for steps in (40, 10, 1))
    coarse = replace(always(2), coarse=0.25).phases(fine)
    assert [phase.steps for phase in coarse] == [10, 2, 1]
    assert {phase.name for phase in coarse} == {"coarse latent"}


def test_a_mapping_needs_classes(prior: Generator) -> None:
    unconditional = stylegan2(small_stylegan2(), name="tiny")
    for attack in (gifd(unconditional), ig()):
        with pytest.raises(InputError, match="expected a conditional prior"):
            replace(attack, label_mapping=always(0))
    with pytest.raises(InputError, match=r"coarse share in \(0, 1\]"):
        LabelMapping(classify=lambda images: images, name="x", coarse=0.0)


# -- remappers ---------------------------------------------------------------------------


def coloured(count: int = 600) -> ImageSet:
    """Three classes, each a colour with noise."""
    labels = torch.randint(3, (count,), generator=rng())
    images = torch.rand(count, 3, 16, 16, generator=rng()) * 150
    images[torch.arange(count), labels] += 100
    return ImageSet(images=images.byte(), labels=labels, classes=("red", "green", "blue"))


def test_a_remapper_learns_classes_of_images() -> None:
    losses: list[float] = []
    remapper = train_remapper(
        coloured(), steps=60, seed=1, callback=lambda step, loss: losses.append(loss)
    )
    assert remapper.classes == 3
    assert remapper.accuracy > 0.95
    assert losses[-1] < losses[0]
    pure = torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)
    assert remapper(pure).tolist() == [0, 1, 2]


def test_a_remapper_learns_classes_of_a_prior(prior: Generator) -> None:
    one, again = (train_remapper(prior, steps=30, seed=2) for _ in range(2))
    assert one.accuracy == again.accuracy
    assert one.accuracy > 0.5  # of samples it never saw; a guess is right in a third
    with pytest.raises(InputError, match="at least 2 classes, got 0"):
        train_remapper(stylegan2(small_stylegan2(), name="tiny"))
    with pytest.raises(InputError, match="at least 2 classes, got 0"):
        train_remapper(ImageSet(images=coloured().images))


def test_a_remapper_is_kept_in_a_file(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = RemapperNet(5, width=8)
    remapper = Remapper(net=net, classes=5, accuracy=0.75, name="map")
    path = tmp_path / "new" / "map.safetensors"
    write_remapper(remapper, path)
    read = read_remapper(path)
    images = torch.rand(4, 3, 80, 80, generator=rng())
    assert read(images).tolist() == remapper(images).tolist()
    assert (read.classes, read.accuracy, read.name) == (5, 0.75, "map")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        write_remapper(remapper, tmp_path / "map.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="expected a remapper"):
        read_remapper(tmp_path / "other.safetensors")
    save_file(
        {"a": torch.zeros(1)},
        tmp_path / "half.safetensors",
        {"format": "gifd remapper", "accuracy": "1"},
    )
    with pytest.raises(WeightsError, match="not a complete remapper"):
        read_remapper(tmp_path / "half.safetensors")


# -- by name -----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIFD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builders, "train_remapper", quick)
    return tmp_path / "cache"


def quick(prior: Generator, **options: object) -> Remapper:
    """The real training, with three steps."""
    return train_remapper(prior, steps=3, **options)  # type: ignore[arg-type]


def test_when_labels_are_mapped(prior: Generator, cache: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def ask(how: str, classes: int, of: Generator = prior) -> LabelMapping | None:
        return catalog.label_mapping(
            how, of, classes=classes, callback=lambda step, loss: steps.append(step)
        )

    assert ask("off", 10) is None
    assert ask("auto", 3) is None  # the prior's own number of classes
    assert not steps
    first = ask("auto", 10)
    assert first is not None
    assert steps == [0, 1, 2]
    again = ask("on", 3)
    assert again is not None
    assert steps == [0, 1, 2]  # cached
    assert "accuracy" in again.name
    (file,) = (cache / "remappers").iterdir()
    assert ask(str(file), 3) is not None
    unconditional = stylegan2(small_stylegan2(), name="tiny")
    assert ask("auto", 10, unconditional) is None
    for how in ("on", str(file)):
        with pytest.raises(InputError, match="expected a conditional prior"):
            ask(how, 10, unconditional)
    with pytest.raises(WeightsError, match="found none"):
        ask(str(tmp_path / "none.safetensors"), 10)
    other = stylegan2(small_stylegan2(classes=4), latent="z", name="tiny")
    with pytest.raises(InputError, match="a remapper to the 4 classes"):
        ask(str(file), 10, other)


def test_the_command_line_maps_and_records(tmp_path: Path, cache: Path) -> None:
    tensors = small_stylegan2(classes=3, resolution=32)
    prior, remapper = tmp_path / "tiny.safetensors", tmp_path / "map.safetensors"
    write_checkpoint(Checkpoint(architecture="stylegan2", tensors=tensors, options={}), prior)
    made = CliRunner().invoke(
        app, ["prior", "remapper", str(prior), "--out", str(remapper), "--steps", "2"]
    )
    assert made.exit_code == 0, made.output
    assert "on held-out images" in made.stdout
    image = tmp_path / "private.png"
    write_image(torch.rand(3, 32, 32, generator=rng()), image)
    arguments = ["attack", str(image), "--prior", str(prior), "--victim", "convnet"]
    arguments += ["--size", "32", "--evaluations", "20", "--restarts", "1"]
    arguments += ["--json", "--label", "7", "--label-mapping"]
    found = CliRunner().invoke(app, [*arguments, str(remapper), "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    (image,) = record["images"]
    assert image["prior_label"] in (0, 1, 2)
    assert image["label_used"] == 7
    assert "map, accuracy" in record["settings"]["label_mapping"]
    wrong = CliRunner().invoke(app, [*arguments, str(prior)])
    assert wrong.exit_code == 2
    assert "expected a remapper" in wrong.stderr
