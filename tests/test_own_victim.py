"""Your own victim on the command line: from a package or a file, and recorded."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from gifd import catalog
from gifd.cli import app
from gifd.images import write_image

BODY = """
import torch
from torch import nn
import {sibling}

def make():
    net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, {sibling}.CLASSES))
    return net.train({training})

def failing():
    raise RuntimeError("first line" + chr(10) + "second line " + 5000 * "x")

def leaving():
    raise SystemExit(3)

def nothing():
    return None

number = 7
"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "i.png"
    write_image(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), path)
    return path


def written(folder: Path, stem: str, training: bool = False) -> Path:
    """A file that imports its sibling, with names that no other test uses."""
    folder.mkdir(exist_ok=True)
    (folder / f"sibling_of_{stem}.py").write_text("CLASSES = 7\n")
    path = folder / f"{stem}.py"
    path.write_text(BODY.format(sibling=f"sibling_of_{stem}", training=training))
    return path


def attacked(picture: Path, victim: str, out: Path, *more: str) -> Result:
    quick = ["--attack", "ig", "--steps", "2", "--restarts", "1", "--json", "--out", str(out)]
    command = ["attack", str(picture), "--victim", victim, *quick, *more]
    return CliRunner().invoke(app, command)


def one_error(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


def test_a_file_is_a_victim_and_its_own_classes_are_recorded(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "models", "in_a_file")
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate([f"{path}:make", "./models/in_a_file.py:make"]):
        result = attacked(picture, name, tmp_path / str(number), "--label", "6")
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record["images"][0]["label_used"] == 6
        assert record["victim"]["name"] == name
        assert record["victim"]["classes"] == 7  # --classes says 10
        assert record["victim"]["training"] is False
        assert "training mode" not in result.stderr


def test_a_mode_that_affects_no_layer_is_not_noted(tmp_path: Path, picture: Path) -> None:
    path = tmp_path / "that_is_deaf.py"
    path.write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    layers = nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(256, 7)\n"
        "    return nn.Sequential(*layers)\n"
    )
    result = attacked(picture, f"{path}:make", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "training mode" not in result.stderr


def test_a_victim_in_training_mode_is_noted_once_and_recorded(
    picture: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, "that_trains", training=True)
    result = attacked(picture, f"{path}:make", tmp_path / "out", "--attack", "dlg")
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert sum("is in training mode" in note for note in notes) == 1
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["victim"]["training"] for record in records] == [True, True]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{file}:made", "expected 'made' in"),
        ("{file}", "name the object"),
        ("{file}:", "name the object"),
        ("{folder}/gone.py:make", "there is no file"),
        ("{folder}/broken.py:make", "SyntaxError"),
        ("{folder}/lonely.py:make", "No module named 'gifd_has_no'"),
        ("{file}:failing", "it raised RuntimeError: first line second line"),
        ("{file}:leaving", "it raised SystemExit: 3"),
        ("{file}:nothing", "got NoneType"),
        ("{file}:number", "to be of type Model or Module, or to make it, got int"),
        ("gifd_has_no:make", "No module named 'gifd_has_no'"),
        (":make", "name the object"),
        ("gifd:", "name the object"),
    ],
)
def test_a_victim_that_cannot_be_had_is_one_line(
    name: str, says: str, picture: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, "with_mistakes")
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "lonely.py").write_text("import gifd_has_no\n")
    line = one_error(attacked(picture, name.format(file=file, folder=tmp_path), tmp_path / "out"))
    assert says in line
    assert len(line) < 900


def test_a_file_that_takes_other_images_is_one_line(picture: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "of_64_pixels")
    result = attacked(picture, f"{path}:make", tmp_path / "out", "--size", "32")
    assert "a model that takes images (2, 3, 32, 32)" in one_error(result)


def test_two_files_of_one_name_are_two_victims(tmp_path: Path) -> None:
    for folder, classes in (("one", 3), ("two", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin.py").write_text(
            "from torch import nn\n"
            f"def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, {classes}))\n"
        )
    names = [f"{tmp_path / folder / 'twin.py'}:make" for folder in ("one", "two", "one")]
    victims = [catalog.victim(name, classes=10, size=2, seed=0) for name in names]
    assert [victim.classes((3, 2, 2)) for victim in victims] == [3, 5, 3]
    assert torch.equal(victims[0].parameters["1.weight"], victims[2].parameters["1.weight"])
