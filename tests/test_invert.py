"""`gifd invert`: an update captured elsewhere, with and without the private images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from gifd.campaign.record import Record
from gifd.cli import app
from gifd.images import read_image

OWN = """
import torch
from torch import nn
from gifd.model import Model

def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return Model(module=nn.Sequential(*layers, nn.Linear(8 * 225, 6)).eval())

def maps():
    return Model(module=nn.Sequential(nn.Conv2d(3, 6, 1)))
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    """A folder with a victim, its weights, a private picture, and what its client returned."""
    (tmp_path / "own.py").write_text(OWN)
    y, x = np.mgrid[0:32, 0:32] / 32
    array = np.stack([x, y * 0.8, 0.3 + 0.5 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06)], axis=2)
    Image.fromarray((array.clip(0, 1) * 255).astype(np.uint8)).save(tmp_path / "private.png")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(8 * 225, 6)).eval()
    torch.save(net.state_dict(), tmp_path / "before.pt")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    picture = read_image(tmp_path / "private.png", size=32)
    torch.autograd.backward(F.cross_entropy(net(picture[None]), torch.tensor([2])))
    torch.save(
        [p.grad for p in net.parameters()],
        tmp_path / "gradient.pt",
    )
    optimizer.step()
    torch.save({"model": net.state_dict(), "round": 3}, tmp_path / "after.pt")
    np.savez(tmp_path / "after.npz", *[t.numpy() for t in net.state_dict().values()])
    return tmp_path


def shared(folder: Path, *more: object) -> list[object]:
    victim = ["--victim", f"{folder / 'own.py'}:model", "--before", folder / "before.pt"]
    return [*victim, "--shape", "3,32,32", "--out", folder / "out", *more]


QUICK = ["--attack", "ig", "--evaluations", "12", "--restarts", "2"]


@pytest.mark.parametrize(
    ("file", "protocol"),
    [("after.pt", "fedavg:lr=0.1"), ("after.npz", "fedavg:lr=0.1"), ("gradient.pt", "fedsgd")],
)
def test_a_captured_update_is_inverted_without_the_private_image(
    file: str, protocol: str, federation: Path
) -> None:
    options = shared(federation, *QUICK, "--protocol", protocol, "--json")
    result = run("invert", federation / file, *options)
    assert result.exit_code == 0, result.output
    record = Record.model_validate(json.loads(result.stdout))
    assert not record.truth
    assert record.psnr is None
    assert record.label_source == "inferred"
    (image,) = record.images
    assert (image.label, image.label_used, image.sha256) == (None, 2, None)
    assert record.evidence is not None
    assert record.evidence.update == file
    assert record.evidence.explained
    assert record.evidence.agreement is not None
    assert record.victim["weights"] == "before.pt"
    nulls = [null for null in record.evidence.null_distances if null is not None]
    assert len(nulls) == 8
    assert record.distance is not None
    assert "explained: the update looks like" in result.stderr
    whole = "whole weights, not their change" in result.stderr
    assert whole == (file != "gradient.pt")
    page = (federation / "out" / "report.html").read_text(encoding="utf-8")
    assert "without the private images" in page
    assert "PSNR ↑" not in page
    assert not list(federation.glob("out/trials/*/private*.png"))
    assert (federation / "out" / "strip.png").exists()


def test_with_the_private_image_it_is_scored(federation: Path) -> None:
    options = shared(federation, *QUICK, "--protocol", "fedavg:lr=0.1", "--json")
    known = run(
        "invert", federation / "after.pt", *options, "--private", federation / "private.png"
    )
    assert known.exit_code == 0, known.output
    record = Record.model_validate(json.loads(known.stdout))
    assert record.truth
    assert record.psnr is not None
    assert record.images[0].name == "private.png"
    assert record.evidence is not None
    unknown = Record.model_validate(
        json.loads(run("invert", federation / "after.pt", *options).stdout)
    )
    assert unknown.distance == record.distance, "the private image changes nothing but scores"


def test_a_wrong_belief_is_said_and_not_called_safe(federation: Path) -> None:
    options = shared(federation, *QUICK, "--label", "2")
    result = run("invert", federation / "after.pt", *options, "--protocol", "fedavg:lr=0.001")
    assert result.exit_code == 0, result.output
    assert "not explained by what is assumed" in result.stderr
    assert "another learning rate" in result.stderr
    page = (federation / "out" / "report.html").read_text(encoding="utf-8")
    assert "Not explained by what is assumed" in page
    assert "no sign of safety" in page


def test_by_default_another_attack_follows_where_peel_sees_nothing(federation: Path) -> None:
    options = ["--protocol", "fedavg:lr=0.1", "--evaluations", "8", "--json"]
    prior = ["--prior-option", "resolution=32"]
    result = run("invert", federation / "after.pt", *shared(federation, *options, *prior))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attack"] in ("peel", "ensemble")


def test_of_several_beliefs_the_one_that_fits_is_used(federation: Path) -> None:
    beliefs = ["fedsgd", "fedavg:lr=0.1", "fedavg:lr=0.001,optimizer=adam"]
    several: list[object] = ["--batch-size", 1, "--batch-size", 3, "--json"]
    for belief in beliefs:
        several += ["--protocol", belief]
    result = run("invert", federation / "after.pt", *shared(federation, *QUICK, *several))
    assert result.exit_code == 0, result.output
    record = Record.model_validate(json.loads(result.stdout))
    assert record.evidence is not None
    assert len(record.evidence.considered) == 6
    assert record.evidence.explained
    assert record.ledger["batch_size"] == 1
    assert "lr=0.1" in str(record.ledger["protocol"])
    misfits = record.evidence.considered
    assert min(misfits, key=lambda name: misfits[name] or 0) == "fedavg:lr=0.1 on 1 image"
    wrong = [misfit for name, misfit in misfits.items() if "lr=0.1 " not in name and "1 im" in name]
    assert all(misfit is not None and misfit > 2 for misfit in wrong)
    assert len(wrong) == 2
    page = (federation / "out" / "report.html").read_text(encoding="utf-8")
    assert "assumptions compared" in page


def test_several_rounds_are_inverted_together(federation: Path) -> None:
    """The same client in two rounds, each with its own weights."""
    first = torch.load(federation / "before.pt", weights_only=True)
    second = {n: t * 1.1 if t.is_floating_point() else t for n, t in first.items()}
    torch.save(second, federation / "second.pt")
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(8 * 225, 6)).eval()
    net.load_state_dict(second)
    picture = read_image(federation / "private.png", size=32)
    torch.autograd.backward(F.cross_entropy(net(picture[None]), torch.tensor([2])))
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    torch.save(net.state_dict(), federation / "after2.pt")
    files = [federation / "after.pt", federation / "after2.pt"]
    more = ["--before", federation / "second.pt", "--protocol", "fedavg:lr=0.1", "--json"]
    result = run("invert", *files, *shared(federation, *QUICK, *more))
    assert result.exit_code == 0, result.output
    record = Record.model_validate(json.loads(result.stdout))
    assert record.image == "after.pt and 1 more"
    assert str(record.ledger["protocol"]).startswith("2 rounds of FedAvg(steps=1, lr=0.1")
    assert record.evidence is not None
    assert record.evidence.explained
    assert record.images[0].label_used == 2
    wrong = run("invert", *files, *shared(federation, *QUICK))
    assert wrong.exit_code == 2
    assert "--before once for each of 2 updates, got 1" in wrong.stderr


def swapped(folder: Path, *more: object) -> list[object]:
    victim = ["--victim", f"{folder / 'own.py'}:model", "--before", folder / "after.pt"]
    options = ["--shape", "3,32,32", "--protocol", "fedavg:lr=0.1", "--out", folder / "out"]
    return [folder / "before.pt", *victim, *options, *QUICK, "--json", *more]


@pytest.mark.parametrize("known", [[], ["--label", "2"]])
def test_before_and_after_that_are_swapped_are_named(known: list[str], federation: Path) -> None:
    result = run("invert", *swapped(federation, *known))
    assert result.exit_code == 0, result.output
    assert "before and after look swapped" in result.stderr
    record = Record.model_validate(json.loads(result.stdout))
    assert record.evidence is not None
    assert known or not record.evidence.explained
    assert any("look swapped" in note for note in record.evidence.notes)


def test_a_label_that_cannot_be_read_is_asked_for_and_guessed(federation: Path) -> None:
    result = run("invert", *swapped(federation))
    assert "does not show the label" in result.stderr
    assert "give --label, or give --defense if a defence is at work" in result.stderr
    assert "grant the labels" not in result.output
    record = Record.model_validate(json.loads(result.stdout))
    assert record.label_source == "estimated"
    assert record.ledger["labels"] is None


def test_a_negated_gradient_is_named(federation: Path) -> None:
    given = torch.load(federation / "gradient.pt", weights_only=True)
    torch.save([-tensor for tensor in given], federation / "negated.pt")
    result = run("invert", federation / "negated.pt", *shared(federation, *QUICK))
    assert result.exit_code == 0, result.output
    assert "would be explained: its sign looks wrong" in result.stderr
    right = run("invert", federation / "gradient.pt", *shared(federation, *QUICK))
    assert "looks wrong" not in right.stderr


def test_whole_weights_of_a_gradient_are_named(federation: Path) -> None:
    """A gradient is expected by default; a step at a rate of 0.1 is minus a tenth of it."""
    result = run("invert", federation / "after.pt", *shared(federation, *QUICK, "--label", 2))
    assert result.exit_code == 0, result.output
    assert "would be explained but for its size, about " in result.stderr
    assert "times too small in all tensors" in result.stderr
    assert "whole weights are a change of weights (--protocol fedavg)" in result.stderr


def test_a_wrong_protocol_is_told_before_the_victim_is_loaded(federation: Path) -> None:
    (federation / "slow.py").write_text("raise SystemExit('it was loaded')")
    slow = ["--victim", f"{federation / 'slow.py'}:model", "--protocol", "fedavg:lr=-1"]
    result = run("invert", federation / "after.pt", *slow)
    assert result.exit_code == 2
    assert "a finite lr > 0" in result.stderr
    assert "loaded" not in result.output


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no file": (["none.pt"], "found none at"),
    "no weights": (["after.pt", "--before", "none.pt"], "found none at"),
    "weights for an update": (["private.png"], "expected a safetensors file or a state dict"),
    "another victim": (["after.pt", "--victim", "convnet", "--before", "after.pt"], "misses"),
    "shape": (["after.pt", "--shape", "32"], "such as 3,64,64, got '32'"),
    "channels": (["after.pt", "--shape", "1,32,32"], "the victim's 3 channels, got 1"),
    "images": (["after.pt", "--private", "."], "as many --private images as --batch-size, 1"),
    "labels": (["after.pt", "--label", "1", "--label", "2"], "expected 1 granted labels"),
    "label": (["after.pt", "--label", "9"], "labels from 0 to 5"),
    "a map": (["map.pt", "--victim", "own.py:maps"], "a map of classes cannot be read"),
    "protocol": (["after.pt", "--protocol", "adam"], "a known protocol (fedsgd, fedavg, between)"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    kind: str, federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, told = MISTAKES[kind]
    monkeypatch.chdir(federation)
    Image.new("RGB", (32, 32)).save("second.png")
    torch.save([torch.ones_like(p) for p in nn.Conv2d(3, 6, 1).parameters()], "map.pt")
    defaults = ["--victim", "own.py:model", "--before", "before.pt", "--shape", "3,32,32"]
    kept: list[str] = []
    if kind == "a map":
        defaults = defaults[4:]  # it has the victim's weights
    for option, value in zip(defaults[::2], defaults[1::2], strict=True):
        kept += [] if option in given else [option, value]
    result = run("invert", *given, *kept, *QUICK)
    assert result.exit_code == 2, result.output
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert told in line
    assert "Traceback" not in result.output


def test_an_update_without_its_head_is_inverted(federation: Path) -> None:
    state = torch.load(federation / "after.pt", weights_only=True)["model"]
    torch.save({n: t for n, t in state.items() if not n.startswith("4.")}, federation / "part.pt")
    options = shared(federation, *QUICK, "--protocol", "fedavg:lr=0.1", "--json")
    refused = run("invert", federation / "part.pt", *options)
    assert refused.exit_code == 2
    assert "does not send it, give --defense hide:parts=..." in " ".join(refused.stderr.split())
    result = run("invert", federation / "part.pt", *options, "--defense", "hide:parts=head")
    assert result.exit_code == 0, result.output
    record = Record.model_validate(json.loads(result.stdout))
    assert record.images[0].label_used == 2
    assert record.label_source == "estimated"
    assert record.evidence is not None
    assert record.evidence.explained
