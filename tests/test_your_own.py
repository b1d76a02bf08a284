"""Your own objects on the command line: the examples of the docs page, and errors."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from gifd import catalog
from gifd.attacks import gifd, ig
from gifd.cli import app
from gifd.cli.frontier import cells
from gifd.errors import InputError
from gifd.federation.defenses import Sparsify
from gifd.images import write_image
from gifd.metrics import MSE, lpips

PAGE = (Path(__file__).parent.parent / "docs" / "your_own.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
TINY = "--steps 6 --restarts 1 --size 32 --json --out out"

OTHERS = """
import dataclasses
from typing import Literal
import torch
from torch import nn
from gifd import attacks
from gifd.federation.defenses import Sparsify
from gifd.metrics import MSE, Metric

def of_a_prior(prior, *, preset, restarts, steps=9, keen: bool = False):
    assert restarts == 1
    return attacks.gifd(prior, preset=preset, restarts=restarts)

made_before = attacks.ig(restarts=3).with_steps(7)
oddly_named = dataclasses.replace(attacks.ig(), name="../a [b]/c")
half = Sparsify(rate=0.5)
net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6))

def of_its_own_classes(classes: int = 7, size: int | None = None):
    assert size is None
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))

def failing(*, how: Literal["loud", 3] = "loud", share: float | None = 1.0):
    raise RuntimeError(f"{how!r} {share!r}")

def wanting(thing: torch.Tensor): ...

class Sorry(Metric):
    name = "sorry"
    higher_is_better = True
    def _values(self, images, truth):
        return [][0]

class Whole(MSE):
    name = "whole"
    def _values(self, images, truth):
        return (images - truth).flatten()[:2]

class Nameless(Metric):
    higher_is_better = True
    def _values(self, images, truth):
        return (images - truth).flatten(1).mean(1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's files, others and an image."""
    for name, text in {**FILES, "others.py": OTHERS}.items():
        (tmp_path / name).write_text(text)
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    write_image(picture, tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"})


def attacked(*arguments: str) -> Result:
    return run("attack", "face.png", *shlex.split(TINY), *arguments)


def one_error(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_runs(command: str) -> None:
    program, kind, *arguments = shlex.split(command)
    assert program == "gifd"
    tiny = shlex.split(TINY) if kind == "attack" else []
    result = run(kind, *arguments, *tiny)
    assert result.exit_code == 0, result.output
    told = "".join(arguments)
    if "my_prior" in told and kind == "prior":
        assert "64 x 8 x 8" in result.stdout
        return
    record = json.loads(result.stdout.splitlines()[0])
    if "my_attack" in told:
        assert record["attack"] == "plain"
        assert "lr=0.05" in json.dumps(record["settings"])
    if "my_defense" in told:
        assert record["defenses"] == ["Rounded(step=0.001)"]
    if "my_victim" in told:
        assert record["victim"]["classes"] == 5
        assert record["victim"]["mean"] == [0.5, 0.5, 0.5]
    if "my_metric" in told:
        values = [each["own_metrics"] for each in (record, *record["images"], *record["phases"])]
        assert all(0 < value["worst"] <= 1 for value in values)
        assert "worst" in result.stderr
        assert "<th>worst</th>" in Path("out/report.html").read_text(encoding="utf-8")


def test_every_kind_has_its_example() -> None:
    assert len(FILES) == 5
    assert all(any(name in command for command in COMMANDS) for name in FILES)


@pytest.mark.usefixtures("folder")
def test_an_own_attack_is_handed_what_it_has_parameters_for() -> None:
    prior = catalog.prior("my_prior.py:small")
    text = "others.py:of_a_prior"
    assert catalog.needs_prior(text)
    built = catalog.attack(text, prior=prior, preset="paper", restarts=1)
    assert built == gifd(prior, preset="paper", restarts=1)
    assert not catalog.needs_prior("others:made_before")
    before = catalog.attack("others:made_before", prior=None, preset="paper")
    assert (before.restarts, before.phases) == (3, ig().with_steps(7).phases)
    assert catalog.attack("my_attack:plain", prior=None, preset="paper", restarts=5).restarts == 5
    with pytest.raises(InputError, match="expected a prior for 'others"):
        catalog.attack(text, prior=None, preset="paper")


@pytest.mark.usefixtures("folder")
def test_what_is_made_already_is_taken_as_it_is() -> None:
    assert catalog.defense("others.py:half") == Sparsify(rate=0.5)
    victim = catalog.victim("others.py:net", classes=10, size=32, seed=0)
    assert victim.classes((3, 32, 32)) == 6
    own = catalog.victim("others.py:of_its_own_classes", classes=10, size=32, seed=0)
    assert own.classes((3, 32, 32)) == 7


@pytest.mark.usefixtures("folder")
def test_a_frontier_takes_strengths_of_an_own_defence() -> None:
    name = "my_defense.py:Rounded"
    assert cells(f"{name}:step=0.1/0.2") == [(name, "step=0.1"), (name, "step=0.2")]


def test_options_go_to_what_the_catalogue_names() -> None:
    prior = catalog.prior("photos64:latent=z,resolution=16")
    assert prior.image_shape == (3, 16, 16)
    text = "gifd:features=2,radius=7,drop_skip=false"
    built = catalog.attack(text, prior=prior, preset="paper")
    assert built.phases == gifd(prior, preset="paper", features=2, radius=7.0).phases
    as_said = catalog.attack("gifd:features=none,preset=paper", prior=prior, preset="strongest")
    assert as_said == gifd(prior, preset="paper")
    victim = catalog.victim("convnet:width=4", classes=10, size=32, seed=0)
    assert victim.parameters["fc.weight"].shape == (10, 16)
    assert isinstance(catalog.metric("mse"), MSE)
    assert vars(catalog.label_estimator("dummy-mean:images=8")) == {"images": 8, "seed": 0}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--attack others.py:made_before:steps=3", "no options for 'others.py:made_before'"),
        (
            "--attack others.py:of_a_prior:step=3",
            "restarts=..., steps=..., keen=...), each once, got",
        ),
        ("--attack others.py:of_a_prior:steps=3.5", "steps to be a whole number, got '3.5'"),
        ("--attack others.py:of_a_prior:keen=so", "keen to be true or false"),
        ("--attack others.py:failing", "it raised RuntimeError: 'loud' 1.0"),
        ("--attack others.py:failing:how=3,share=none", "it raised RuntimeError: 3 None"),
        ("--attack others.py:failing:how=4", "how to be loud or 3, got '4'"),
        ("--attack others.py:failing:share=x", "share to be a number or none"),
        ("--attack others.py:half", "to be of type Attack, or to make it, got Sparsify"),
        ("--attack others.py:wanting", "got its parameter 'thing': give it a default"),
        ("--attack nowhere.py:plain", "there is no file 'nowhere.py'"),
        ("--attack my_attack.py", "your own attack as"),
        ("--defense my_defense.py:Rounded", "expected 'my_defense.py:Rounded:step=...'"),
        ("--defense my_defense.py:Square:a=1", "expected 'Square' in 'my_defense.py'"),
        ("--prior others.py:net --attack gifd", "to return Generator"),
        ("--prior my_prior.py --attack gifd", "your own prior as"),
        ("--victim others:half", "to be of type Model or Module"),
        ("--metric others.py:Sorry", "it raised IndexError"),
        ("--metric others.py:Whole", "a value per pair"),
        ("--metric others.py:Nameless", "it raised AttributeError"),
        ("--metric lpips:net=vgg", "no options for 'lpips'"),
    ],
)
def test_what_goes_wrong_is_one_line(arguments: str, says: str) -> None:
    assert says in one_error(attacked("--attack", "ig", *shlex.split(arguments)))


def test_an_attack_may_be_called_anything(folder: Path) -> None:
    result = attacked("--attack", "others.py:oddly_named")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attack"] == "../a [b]/c"
    (trial,) = (folder / "out" / "trials").iterdir()
    assert trial.name == "0001-face--a-b-c-strongest"


@pytest.mark.usefixtures("folder")
def test_of_two_metrics_of_one_name_the_last_is_computed() -> None:
    text = FILES["my_metric.py"].replace('"worst"', '"psnr"')
    Path("louder.py").write_text(text)
    told = json.loads(attacked("--attack", "ig", "--metric", "louder.py:Worst").stdout)
    assert 0 < told["psnr"] <= 1
    assert told["own_metrics"] == {}


def test_the_flag_of_before_is_still_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    lpips._network.cache_clear()
    for asked in (["--lpips"], ["--metric", "lpips"]):
        result = run("attack", "x.png", "--attack", "ig", "--victim", "convnet", *asked)
        assert 'pip install "gifd[lpips]"' in one_error(result)
    assert "--lpips" not in run("attack", "--help").output
