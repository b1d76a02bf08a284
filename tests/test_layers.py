"""`gifd layers`: what each part of an update gives away, alone and left out."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from gifd.campaign.part import EXACT, leak
from gifd.campaign.sweep import Row
from gifd.cli import app
from gifd.errors import InputError
from gifd.federation.defenses.hide import parts_of
from gifd.images import write_image
from gifd.leaves import dead_leaves
from gifd.model import Model
from gifd.victims import ConvNet, LeNet, ResNet18


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    rng = torch.Generator().manual_seed(0)
    for label in (1, 2):
        write_image(dead_leaves(1, (3, 16, 16), rng)[0], folder / f"class{label}.png")
    return [str(path) for path in sorted(folder.glob("*.png"))]


def run(images: list[str], *arguments: object) -> Result:
    fixed = ["--victim", "convnet", "--shape", "16,16", "--attack", "ig", "--evaluations", "4"]
    fixed += ["--labels", "class([0-9])"]
    return CliRunner().invoke(app, ["layers", *images, *fixed, *map(str, arguments)])


def rows_of(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "layers.jsonl").read_text().splitlines()]


def test_each_part_is_sent_alone_and_left_out(images: list[str], tmp_path: Path) -> None:
    result = run(images, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    names = ["body", "fc"]
    found = json.loads((tmp_path / "layers.json").read_text())
    assert [part["name"] for part in found["parts"]] == names
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * (1 + 2 * len(names))
    seeds = {row["seed"] for row in rows}
    assert len(seeds) == 2, "each client has its own start, the same for all parts"
    page = (tmp_path / "layers.html").read_text(encoding="utf-8")
    assert re.findall("<tr><td>(.*?)</td>", page) == ["everything", *names]
    assert "n = 2 images" in page
    assert "does not prove that an update is safe" in page
    whole = [row for row in rows if row["sent"] == "everything"]
    alone = [row for row in rows if row["sent"] == "body alone"]
    assert {row["distance"] for row in whole}.isdisjoint({row["distance"] for row in alone})
    again = run(images, "--out", tmp_path)
    assert again.exit_code == 0
    assert rows_of(tmp_path) == rows, "nothing is computed twice"


def test_the_parts_may_be_named_and_an_attack_may_refuse(images: list[str], tmp_path: Path) -> None:
    named = ["--part", "head+body.3", "--part", "*.bias", "--attack", "peel"]
    result = run(images[:1], *named, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    rows = rows_of(tmp_path)
    refused = [row for row in rows if "refused" in row]
    assert {row["attack"] for row in refused} == {"peel"}
    assert len(refused) == len(rows) / 2
    found = json.loads((tmp_path / "layers.json").read_text())
    assert [part["name"] for part in found["parts"]] == ["head+body.3", "*.bias"]
    assert found["whole"]["by"] == ["ig"]


def test_if_all_attacks_refuse_no_number_is_shown(images: list[str], tmp_path: Path) -> None:
    arguments = ["layers", *images, "--victim", "convnet", "--shape", "16,16", "--attack", "peel"]
    arguments += ["--labels", "class([0-9])", "--part", "fc", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "refused" in result.stderr
    assert json.loads((tmp_path / "layers.json").read_text())["whole"]["psnr"] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--part", "body.7"], "got 'body.7'"),
        (["--part", "fc+body"], "something to send"),
        (["--attack", "igg"], "known attack"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], says: str, images: list[str], tmp_path: Path
) -> None:
    result = run(images, *arguments, "--out", tmp_path)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert says in line


def test_rows_of_another_command_are_refused(images: list[str], tmp_path: Path) -> None:
    run(images[:1], "--out", tmp_path)
    file = tmp_path / "layers.jsonl"
    file.write_text(file.read_text().replace('"label_used"', '"label_guessed"'))
    result = run(images[:1], "--out", tmp_path)
    assert result.exit_code == 2
    assert "expected results of 'gifd layers', got " in result.stderr


def test_parts_are_the_outermost_modules_of_which_there_are_several() -> None:
    resnet = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert parts_of(Model(module=ResNet18(10))) == resnet
    wrapped = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)))
    assert parts_of(Model(module=wrapped)) == ["0.1", "0.2"]
    assert parts_of(Model(module=ConvNet(4))) == ["body", "fc"]
    assert parts_of(Model(module=LeNet(4)), 9) == ["conv1", "conv2", "conv3", "fc"]
    with pytest.raises(InputError, match="several parts, got one"):
        parts_of(Model(module=nn.Linear(4, 2, bias=False)))


def test_the_best_attack_counts_and_an_exact_one_is_a_number() -> None:
    found = leak([[(12.0, "ig", True), None], [(float("inf"), "peel", True), (20.0, "ig", False)]])
    assert found.psnr == [12.0, EXACT]
    assert found.by == ["ig", "peel"]
    refused = leak([[None, None]])
    assert refused.psnr == [None]
    assert refused.mean is None
