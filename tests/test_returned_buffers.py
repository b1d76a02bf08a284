"""Buffers that a client returns: the statistics of its images, and its number of local steps."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from gifd.batch_norm import Statistics, batch_statistics, passes_counted, returned_statistics
from gifd.campaign.record import Record
from gifd.captures import Capture, at_weights, from_arrays, from_state_dicts, read_capture
from gifd.cli import app
from gifd.errors import ModelError, UpdateError
from gifd.federation.protocols import FedAvg
from gifd.leaves import dead_leaves
from gifd.model import Model

pytestmark = pytest.mark.numerical

SHAPE = (3, 12, 12)
IMAGES = dead_leaves(5, SHAPE, torch.Generator().manual_seed(3)).double()
LABELS = torch.tensor([1, 4, 2, 0, 3])
CLOSE = 1e-9


class Net(nn.Module):
    """Three batch norms, of which the last one made is used first."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, 2)
        self.late = nn.BatchNorm2d(6, momentum=momentum)
        self.fc = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=momentum))
        self.head = nn.Linear(8, 5)
        self.begin, self.early = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.early(self.begin(x)))
        x = F.relu(self.late(self.conv(x)))
        return self.head(self.fc(x.mean((2, 3))))  # type: ignore[no-any-return]


def network(momentum: float | None = 0.1, seen: int = 7) -> Net:
    """In training mode, after some forward passes on other images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(momentum).double().train()
        with torch.no_grad():
            for _ in range(seen):
                net(torch.rand(4, *SHAPE).double())
    return net


def trained(net: nn.Module, batches: Sequence[Sequence[int]]) -> tuple[nn.Module, list[Model]]:
    """What an ordinary client makes of it, and the model at the weights of each of its steps."""
    local, visited = copy.deepcopy(net), []
    optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
    for own in batches:
        visited.append(Model(module=copy.deepcopy(local)))
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(local(IMAGES[own]), LABELS[own]))
        optimizer.step()
    return local, visited


def equal(found: Sequence[Statistics], expected: Sequence[Statistics]) -> bool:
    return len(found) == len(expected) and all(
        torch.allclose(one.mean, other.mean, rtol=CLOSE, atol=CLOSE)
        and torch.allclose(one.variance, other.variance, rtol=CLOSE, atol=CLOSE)
        for one, other in zip(found, expected, strict=True)
    )


WAYS: dict[str, Callable[[nn.Module, nn.Module, Model, Path], Capture]] = {
    "state dicts": lambda b, a, m, _: from_state_dicts(b.state_dict(), a.state_dict(), m),
    "by name": lambda b, a, m, _: from_arrays(a.state_dict(), m),
    "Flower's list": lambda b, a, m, _: from_arrays(
        [t.numpy() for t in a.state_dict().values()], m
    ),
    "a file": lambda b, a, m, path: _through_a_file(a, m, path),
}


def _through_a_file(after: nn.Module, model: Model, path: Path) -> Capture:
    torch.save({"state_dict": nn.DataParallel(after).state_dict()}, path / "after.pt")
    return read_capture(path / "after.pt", model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_one_step_gives_the_statistics_of_the_images(
    momentum: float | None, way: str, tmp_path: Path
) -> None:
    net = network(momentum)
    model = Model(module=net)
    after, _ = trained(net, [range(5)])
    capture = WAYS[way](net, after, model, tmp_path)
    assert any("trained them in training mode" in note for note in capture.notes)
    found = returned_statistics(model, capture.buffers, SHAPE, FedAvg(steps=1, lr=0.1).passes(5))
    with torch.no_grad():
        expected = batch_statistics(model, IMAGES)
    assert [len(each.mean) for each in expected] == [4, 6, 8]
    assert equal(found, expected)
    assert passes_counted(model, capture.buffers) == 1


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_several_steps_give_a_weighted_mean(momentum: float | None, batch_size: int | None) -> None:
    """The weights of the docstring, of the passes' own statistics at their own weights."""
    if batch_size == 2:
        protocol = FedAvg(steps=5, lr=0.1, batch_size=3)  # 3, 2, 3, 2, 3 images
        batches: list[Sequence[int]] = [own.tolist() for own in protocol.batches(5)]
    else:
        protocol, batches = FedAvg(steps=3, lr=0.1), [range(5)] * 3
    assert protocol.passes(5) == tuple(map(len, batches))
    net = network(momentum)
    model = Model(module=net)
    after, visited = trained(net, batches)
    capture = from_state_dicts(net.state_dict(), after.state_dict(), model)
    assert passes_counted(model, capture.buffers) == len(batches)
    found = returned_statistics(model, capture.buffers, SHAPE, protocol.passes(5))
    with torch.no_grad():
        passes = [batch_statistics(m, IMAGES[own]) for m, own in zip(visited, batches, strict=True)]
    own = [1 / (8 + t) if momentum is None else momentum for t in range(len(batches))]
    shares = [m * math.prod(1 - s for s in own[t + 1 :]) for t, m in enumerate(own)]
    weights = torch.tensor(shares, dtype=torch.float64)
    for layer, (statistics, positions) in enumerate(zip(found, (100, 16, 1), strict=True)):
        n = torch.tensor([len(each) * positions for each in batches]).double()
        mean = torch.stack([each[layer].mean for each in passes])
        variance = torch.stack([each[layer].variance for each in passes])
        biased = weights * n / (n - 1)
        expected = Statistics(
            mean=weights @ mean / weights.sum(), variance=biased @ variance / biased.sum()
        )
        assert equal([statistics], [expected])
    with torch.no_grad():
        at_first = batch_statistics(model, IMAGES)
    assert not equal(found, at_first), "the steps see other weights"


def test_a_client_in_evaluation_mode_gives_none() -> None:
    net = network().eval()
    after, _ = trained(net, [range(5)])
    for dtype in (torch.float64, torch.float16):
        given = {name: tensor.to(dtype) for name, tensor in after.state_dict().items()}
        found = from_arrays(given, Model(module=net))
        assert not found.buffers
        assert not any("training mode" in note for note in found.notes)
    delta = {name: tensor - net.state_dict()[name] for name, tensor in after.state_dict().items()}
    assert not from_arrays(delta, Model(module=net)).buffers


def buffers_of(net: nn.Module, batches: Sequence[Sequence[int]] = (range(5),)) -> dict[str, Tensor]:
    after, _ = trained(net, batches)
    return dict(after.state_dict())


def test_what_the_buffers_do_not_tell_is_refused() -> None:
    net = network()
    model, once = Model(module=net), buffers_of(net)
    with pytest.raises(ModelError, match=r"counters show, 1, got 2"):
        returned_statistics(model, once, SHAPE, (5, 5))
    with pytest.raises(ModelError, match=r"in training mode, as the client's were"):
        returned_statistics(Model(module=copy.deepcopy(net).eval()), once, SHAPE, (5,))
    uncounted = {name: t for name, t in once.items() if not name.endswith("tracked")}
    assert passes_counted(model, uncounted) is None
    assert equal(
        returned_statistics(model, uncounted, SHAPE, (5,)),
        returned_statistics(model, once, SHAPE, (5,)),
    )
    with pytest.raises(ModelError, match=r"more than one value per channel at 'fc.1'"):
        returned_statistics(model, uncounted, SHAPE, (1,))
    same = {name: net.state_dict()[name] for name in once if name.startswith("early")}
    with pytest.raises(ModelError, match=r"'early' has not"):
        returned_statistics(model, {**once, **same}, SHAPE, (5,))
    slow = copy.deepcopy(net)
    slow.early.momentum = 0.01
    with pytest.raises(ModelError, match=r"another momentum or number of passes"):
        returned_statistics(Model(module=slow), once, SHAPE, (5,))


def test_a_layer_that_is_used_twice_is_refused() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(1 - x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Twice().double()
    with pytest.raises(ModelError, match="used once in a forward pass"):
        returned_statistics(Model(module=net), buffers_of(net), SHAPE, (5, 5))


def test_other_running_statistics_before_are_other_weights() -> None:
    net = network()
    other = Model(module=network(seen=1))
    with pytest.raises(UpdateError, match="got other weights"):
        from_state_dicts(net.state_dict(), buffers_of(net), other)


def test_missing_counters_are_said() -> None:
    net = network()
    given = {name: t for name, t in net.state_dict().items() if not name.endswith("tracked")}
    _, notes = at_weights(given, Model(module=net))
    assert any("counters are missing" in note for note in notes)


# -- the command -----------------------------------------------------------------------------

OWN = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 25, 6)).{mode}()
"""


def inverted(folder: Path, *arguments: str, mode: str = "train") -> tuple[Record, list[str]]:
    """Two local steps in training mode, captured, and attacked as the arguments say."""
    names: dict[str, Callable[[], nn.Module]] = {}
    source = OWN.replace("{mode}", mode)
    (folder / "own.py").write_text(source)
    with torch.random.fork_rng(devices=[]):
        exec(source, names)
        net = names["net"]().train()
    torch.save(net.state_dict(), folder / "before.pt")
    normal = Model(module=net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = normal.normalize(IMAGES[:2].float())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(images), torch.tensor([2, 4])))
        optimizer.step()
    torch.save(net.state_dict(), folder / "after.pt")
    fixed = ["--before", folder / "before.pt", "--victim", f"{folder / 'own.py'}:net"]
    quick = ["--attack", "gradinversion", "--steps", "2", "--restarts", "1", "--batch-size", "2"]
    more = ["--shape", "3,12,12", "--label", "2", "--label", "4", "--out", folder / "out", "--json"]
    command = ["invert", folder / "after.pt", *fixed, *quick, *more, *arguments]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    return Record.model_validate(json.loads(result.stdout)), notes


def test_invert_grants_them_and_says_so(tmp_path: Path) -> None:
    record, notes = inverted(tmp_path, "--protocol", "fedavg:lr=0.05,steps=2")
    assert record.ledger["batch_norm"] == "batch"
    assert record.evidence is not None
    assert record.evidence.explained
    for told in ("counters say 2 local steps", "over 2 local steps", "at 1 batch norms"):
        assert any(told in note for note in notes), notes
        assert any(told in note for note in record.evidence.notes)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "counters say 2 local steps" in page


def test_invert_says_that_another_number_of_steps_was_counted(tmp_path: Path) -> None:
    record, notes = inverted(tmp_path, "--protocol", "fedavg:lr=0.1")
    assert record.ledger["batch_norm"] is None
    assert any("say 2 local steps, but the protocol has 1" in note for note in notes)
    (tmp_path / "both").mkdir()
    both = ["--protocol", "fedavg:lr=0.1", "--protocol", "fedavg:lr=0.05,steps=2"]
    record, notes = inverted(tmp_path / "both", *both)
    assert record.ledger["batch_norm"] == "batch"
    assert any("another number of local steps" in note for note in notes)


def test_a_batch_of_one_that_the_model_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432), nn.Linear(432, 5)).train()\n"
    )
    torch.save(
        [torch.ones(432), torch.ones(432), torch.ones(5, 432), torch.ones(5)], tmp_path / "u"
    )
    victim = ["--victim", f"{tmp_path / 'own.py'}:net", "--shape", "3,12,12"]
    result = CliRunner().invoke(app, ["invert", str(tmp_path / "u"), *victim])
    assert result.exit_code == 2, result.output
    assert "a model that takes images (1, 3, 12, 12), got: Expected more than 1" in result.stderr


def test_invert_says_that_the_client_was_in_another_mode(tmp_path: Path) -> None:
    record, notes = inverted(tmp_path, "--protocol", "fedavg:lr=0.05,steps=2", mode="eval")
    assert record.ledger["batch_norm"] is None
    assert any("buffers are not used: expected a model whose batch norms" in n for n in notes)
