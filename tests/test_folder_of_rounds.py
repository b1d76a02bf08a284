"""A folder of rounds: which files belong to a client, and what is missing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner, Result

from gifd.campaign.record import Record
from gifd.captures import read_capture, read_rounds, read_weights
from gifd.cli import app
from gifd.errors import UpdateError
from gifd.leaves import dead_leaves
from gifd.model import Model
from gifd.tensor_files import write_tensors

OWN = """
from torch import nn
from gifd.model import Model

def net():
    layers = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Flatten()]
    return Model(module=nn.Sequential(*layers, nn.Linear(150, 6)))
"""
CLIENTS = ("11", "9", "b.2")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(150, 6))


def image(client: int) -> torch.Tensor:
    return dead_leaves(1, (3, 12, 12), torch.Generator().manual_seed(client))


@pytest.fixture
def updates(tmp_path: Path) -> Path:
    """Rounds 1, 2 and 10 of three clients, of which the last one is absent in round 2."""
    net = network()
    for number in (1, 2, 10):
        folder = tmp_path / "updates" / f"round-{number}"
        write_tensors(net.state_dict(), {}, folder / "before.safetensors")
        returned = []
        for place, client in enumerate(CLIENTS):
            local = copy.deepcopy(net)
            optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
            torch.autograd.backward(F.cross_entropy(local(image(place)), torch.tensor([place])))
            optimizer.step()
            returned.append(local)
            if (number, client) != (2, "b.2"):
                write_tensors(local.state_dict(), {}, folder / f"client-{client}.safetensors")
        with torch.no_grad():
            for own, each in zip(
                net.parameters(), zip(*(local.parameters() for local in returned), strict=True),
                strict=True,
            ):  # fmt: skip
                own.copy_(torch.stack(each).mean(0))
    (tmp_path / "updates" / "notes").mkdir()
    (tmp_path / "updates" / "readme.md").write_text("of a federation")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "updates"


def invert(folder: Path, *arguments: object) -> Result:
    fixed = ["--victim", f"{folder.parent / 'own.py'}:net", "--shape", "3,12,12", "--json"]
    quick = ["--attack", "ig", "--evaluations", "4", "--restarts", "1", "--out", folder / "out"]
    more = ["--protocol", "fedavg:lr=0.1"]
    return CliRunner().invoke(
        app, [*map(str, ["invert", folder, *arguments, *fixed, *quick, *more])]
    )


@pytest.mark.parametrize(("client", "rounds"), [("11", (1, 2, 10)), ("client-b.2", (1, 10))])
def test_all_rounds_of_a_client_in_their_order(
    client: str, rounds: tuple[int, ...], updates: Path
) -> None:
    model, name = Model(module=network()), client.removeprefix("client-")
    found = read_rounds(updates, model, client=client)
    assert [each.after for each in found] == [
        f"round-{n}/client-{name}.safetensors" for n in rounds
    ]
    for each in found:
        own, _ = read_weights(updates / each.before, model)
        expected = read_capture(updates / each.after, own).update
        assert float((each.capture.update - expected).norm()) == 0
        assert all(torch.equal(t, own.parameters[n]) for n, t in each.model.parameters.items())


def test_before_and_after_of_the_only_client(updates: Path) -> None:
    model = Model(module=network())
    for folder in updates.glob("round-*"):
        (folder / "client-9.safetensors").rename(folder / "after.safetensors")
        for other in folder.glob("client-*"):
            other.unlink()
    found = read_rounds(updates, model)
    assert [each.after for each in found] == [f"round-{n}/after.safetensors" for n in (1, 2, 10)]
    (one,) = read_rounds(updates / "round-2", model)
    assert (one.before, one.after) == ("before.safetensors", "after.safetensors")
    assert float((one.capture.update - found[1].capture.update).norm()) == 0


def test_invert_takes_them_together(updates: Path) -> None:
    done = invert(updates, "--client", "9")
    assert done.exit_code == 0, done.output
    record = Record.model_validate(json.loads(done.stdout))
    assert record.image == "updates/round-1/client-9.safetensors and 2 more"
    assert str(record.ledger["protocol"]).startswith("3 rounds of FedAvg(steps=1, lr=0.1")
    assert record.images[0].label_used == 1
    assert str(record.victim["weights"]).startswith("round-1/before.safetensors, round-2/")
    assert record.evidence is not None
    assert record.evidence.explained
    assert any("3 rounds are taken to be on the same" in note for note in record.evidence.notes)


def _emptied(folder: Path) -> None:
    for each in folder.glob("round-*"):
        shutil.rmtree(each)


def _without_before(folder: Path) -> None:
    (folder / "round-2" / "before.safetensors").unlink()


def _twice(folder: Path) -> None:
    torch.save(network().state_dict(), folder / "round-10" / "before.pt")


def _damaged(folder: Path) -> None:
    (folder / "round-2" / "client-11.safetensors").write_bytes(b"nothing")


MISTAKES: dict[str, tuple[list[str], Callable[[Path], None], str]] = {
    "no client": ([], lambda f: None, "of one of 3 clients (9, 11, b.2), got none"),
    "another client": (["--client", "7"], lambda f: None, "(9, 11, b.2), got '7'"),
    "no rounds": (["--client", "9"], _emptied, "or after.*, found none"),
    "no before": (["--client", "9"], _without_before, "round-2' to hold before.*, the weights"),
    "two befores": (["--client", "9"], _twice, "before.pt and before.safetensors: remove one"),
    "damaged": (["--client", "11"], _damaged, "cannot be read as tensors"),
    "weights too": (["--before", "x.pt"], lambda f: None, "1 updates and 1 times --before"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_told_in_one_line(kind: str, updates: Path) -> None:
    arguments, make, told = MISTAKES[kind]
    make(updates)
    result = invert(updates, *arguments)
    assert result.exit_code == 2, result.output
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert told in line


def test_other_mistakes(updates: Path) -> None:
    file = updates / "round-1" / "client-9.safetensors"
    result = CliRunner().invoke(app, ["invert", str(file), "--client", "9", "--victim", "convnet"])
    assert "expected --client with a folder of rounds, got 1 files" in result.stderr
    with pytest.raises(UpdateError, match="expected a folder of rounds, found none"):
        read_rounds(updates / "none", Model(module=network()))


def test_a_list_beside_a_clients_file_is_no_update_and_a_number_is_a_name(updates: Path) -> None:
    (updates / "round-1" / "client-11.json").write_text("[]")
    model = Model(module=network())
    for name in ("11", "011", "client-11"):
        assert len(read_rounds(updates, model, client=name)) == 3
