"""What the command line notes: one line each, once, on stderr."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from gifd import terminal
from gifd.cli import app
from gifd.images import write_image


def drawn(path: Path, height: int, width: int) -> Path:
    rng = torch.Generator().manual_seed(height + width)
    write_image(torch.rand(3, height, width, generator=rng), path)
    return path


def notes(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("note: ")]


def attacked(out: Path, *paths: Path) -> Result:
    quick = ["--attack", "ig", "--victim", "convnet", "--steps", "2", "--restarts", "1", "--json"]
    command = ["attack", *map(str, paths), *quick, "--out", str(out)]
    return CliRunner().invoke(app, command)


def test_a_crop_and_an_enlargement_are_noted_once_and_recorded(tmp_path: Path) -> None:
    paths = [
        drawn(tmp_path / "tall.png", 90, 70),
        drawn(tmp_path / "wide.png", 30, 40),
        drawn(tmp_path / "right.png", 64, 64),
    ]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    result = attacked(tmp_path / "out", *paths, broken)
    assert notes(result) == [
        "note: images: 2 of 3 cropped to the centre square, 1 of 3 enlarged to 64 x 64 pixels"
    ]
    assert result.exit_code == 2  # of the broken one
    records = [json.loads(line) for line in result.stdout.splitlines()]
    sizes = [record["images"][0]["original_size"] for record in records]
    assert sizes == [[70, 90], [40, 30], [64, 64]]


def test_an_error_names_the_commands_own_option(tmp_path: Path) -> None:
    """Instead of what to do in Python."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "from gifd import ConvNet, Model\n"
        "def net():\n    return Model(module=ConvNet(2).eval(), loss=nn.BCEWithLogitsLoss())\n"
    )
    victim = ["--victim", f"{tmp_path / 'own.py'}:net", "--out", str(tmp_path / "out")]
    picture = str(drawn(tmp_path / "i.png", 64, 64))
    batch = ["attack", picture, picture, "--batch-size", "2", "--label", "1,0"]
    result = CliRunner().invoke(app, [*batch, "--attack", "ig", "--steps", "1", *victim])
    assert result.exit_code == 2
    assert "which are numbers, got 2: give --grant-labels, or use" in result.stderr
    assert "grant the labels" not in result.stderr
    assert terminal.in_shell("grant the labels") == "grant the labels", "no command runs"


@pytest.mark.parametrize("side", [64, 128])
def test_a_square_that_is_large_enough_needs_no_note(tmp_path: Path, side: int) -> None:
    result = attacked(tmp_path / "out", drawn(tmp_path / "i.png", side, side))
    assert result.exit_code == 0, result.output
    assert notes(result) == []
