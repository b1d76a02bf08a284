"""Flower: real strategies, messages and client apps, in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn
from typer.testing import CliRunner

from gifd.attacks import ig
from gifd.campaign.record import Record
from gifd.cli import app as gifd_app
from gifd.errors import InputError
from gifd.federation.optimizers import Adam
from gifd.federation.protocols import FedAvg as LocalTraining
from gifd.integrations.flower import WITHHELD, LeakageMod, LeakError, Recorded
from gifd.model import Model

NODES = (11, 12, 13, 14)
LR = 0.1


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(16 * 49, 5)).eval()


def batch(message: Message, context: Context) -> tuple[Tensor, Tensor]:
    """A node's only image: a smooth gradient of colours."""
    rng = torch.Generator().manual_seed(context.node_id)
    coarse = torch.rand(1, 3, 3, 3, generator=rng)
    images = F.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=True)
    return images, torch.randint(5, (1,), generator=rng)


def train(message: Message, context: Context, adam: bool = False) -> Message:
    """As in Flower's examples: load, train, send the weights back."""
    net = network()
    (arrays,) = message.content.array_records.values()
    net.load_state_dict(arrays.to_torch_state_dict())
    kind = torch.optim.Adam if adam else torch.optim.SGD
    optimizer: torch.optim.Optimizer = kind(net.parameters(), lr=LR)
    images, labels = batch(message, context)
    torch.autograd.backward(F.cross_entropy(net(images), labels))
    optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"num-examples": len(images), "loss": 1.0}),
        }
    )
    return Message(content=content, reply_to=message)


class InProcess(Grid):
    """Four nodes in this process, each with the same app."""

    def __init__(self, client: ClientApp) -> None:
        self.client = client

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return NODES

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        found = []
        for message in messages:
            node = message.metadata.dst_node_id
            context = Context(
                run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}
            )
            found.append(self.client(message, context))
        return found


def federation(mod: LeakageMod | None, folder: Path, rounds: int = 1, adam: bool = False) -> Result:
    """The rounds of a strategy that records, with this mod on the clients."""
    client = ClientApp()
    client.train(mods=[] if mod is None else [mod])(partial(train, adam=adam))
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=len(NODES))
    return Recorded(strategy, folder).start(
        grid=InProcess(client),
        initial_arrays=ArrayRecord(network().state_dict()),
        num_rounds=rounds,
    )


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a running server app has."""
    for name, value in (("_task_id", 1), ("_run_id", 1), ("_node_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


def quick() -> Any:
    return ig(restarts=1).with_steps(20)


def mod(**settings: Any) -> LeakageMod:
    given: dict[str, Any] = {"batch": batch, "attack": quick(), "threshold": 0.0} | settings
    protocol = given.pop("protocol", LocalTraining(steps=1, lr=LR))
    return LeakageMod(Model(module=network()), (3, 16, 16), protocol, **given)


def test_a_recorded_update_is_inverted(tmp_path: Path) -> None:
    """Three rounds of four clients; then one's last reply, compared with its image."""
    result = federation(None, tmp_path / "updates", rounds=3)
    assert set(result.train_metrics_clientapp) == {1, 2, 3}
    for number in (1, 2, 3):
        folder = tmp_path / "updates" / f"round-{number:03d}"
        names = sorted(path.stem for path in folder.glob("*.safetensors"))
        assert names == ["before", *(f"client-{node}" for node in NODES)]
    (tmp_path / "own.py").write_text(
        "from torch import nn\nfrom gifd.model import Model\n"
        "def net():\n"
        "    layers = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()]\n"
        "    return Model(module=nn.Sequential(*layers, nn.Linear(784, 5)).eval())\n"
    )
    last = tmp_path / "updates" / "round-003"
    options = ["--victim", f"{tmp_path / 'own.py'}:net", "--before", last / "before.safetensors"]
    more = ["--shape", "3,16,16", "--protocol", f"fedavg:lr={LR}", "--out", tmp_path / "out"]
    attack = ["--attack", "ig", "--evaluations", "150", "--restarts", "1", "--json"]
    arguments = ["invert", last / f"client-{NODES[2]}.safetensors", *options, *more, *attack]
    done = CliRunner().invoke(gifd_app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    record = Record.model_validate(json.loads(done.stdout))
    assert record.evidence is not None
    assert record.evidence.explained
    context = Context(run_id=1, node_id=NODES[2], node_config={}, state=RecordDict(), run_config={})
    images, labels = batch(None, context)  # type: ignore[arg-type]
    assert record.label_source == "inferred"
    assert record.images[0].label_used == int(labels)
    (found,) = (tmp_path / "out" / "trials").glob("*/reconstruction.png")
    from gifd.images import read_image

    error = float((read_image(found, size=16)[None] - images).square().mean())
    flat = float((images.mean() - images).square().mean())
    assert error < flat, "nearer than the image's mean"


def test_what_a_reply_gives_away_is_in_its_metrics(tmp_path: Path) -> None:
    result = federation(mod(), tmp_path)
    found = result.train_metrics_clientapp[1]
    assert found["gifd-leak"] == 1.0
    assert found["gifd-explained"] == 1.0
    assert isinstance(found["gifd-psnr"], float)
    assert found["gifd-psnr"] > 5
    assert found["loss"] == 1.0, "the client's own metrics are kept"


def test_without_the_batch_a_client_of_stand_ins_is_attacked(tmp_path: Path) -> None:
    found = federation(mod(batch=None), tmp_path).train_metrics_clientapp[1]
    assert found["gifd-explained"] == 1.0
    assert isinstance(found["gifd-psnr"], float)
    assert found["gifd-psnr"] > 3


def test_a_wrong_protocol_is_not_called_safe(tmp_path: Path) -> None:
    wrong = LocalTraining(steps=1, lr=0.001, optimizer=Adam())
    found = federation(mod(protocol=wrong), tmp_path).train_metrics_clientapp[1]
    assert found["gifd-explained"] == 0.0


def test_an_attack_that_refuses_gives_no_number(tmp_path: Path) -> None:
    signs = LocalTraining(steps=1, lr=LR, optimizer=Adam())
    measuring = mod(protocol=signs, attack=None)
    found = federation(measuring, tmp_path, adam=True).train_metrics_clientapp[1]
    assert found["gifd-explained"] == 1.0
    assert isinstance(found["gifd-psnr"], float)
    assert math.isnan(found["gifd-psnr"])
    assert found["gifd-leak"] == 0.0


def test_a_leak_is_withheld(tmp_path: Path) -> None:
    replies: list[Message] = []
    client = ClientApp()
    client.train(mods=[_kept(replies), mod(on_leak="withhold")])(train)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=4)
    grid, arrays = InProcess(client), ArrayRecord(network().state_dict())
    Recorded(strategy, tmp_path).start(grid=grid, initial_arrays=arrays, num_rounds=1)
    assert [reply.error.code for reply in replies] == [WITHHELD] * 4
    assert "reconstructed at" in (replies[0].error.reason or "")
    assert [path.stem for path in tmp_path.glob("*/*.safetensors")] == ["before"]
    replies.clear()
    client = ClientApp()
    client.train(mods=[_kept(replies), mod(on_leak="withhold", threshold=90.0)])(train)
    Recorded(strategy, tmp_path).start(grid=InProcess(client), initial_arrays=arrays, num_rounds=1)
    assert not any(reply.has_error() for reply in replies)


def _kept(replies: list[Message]) -> Callable[[Message, Context, Any], Message]:
    def keep(message: Message, context: Context, call_next: Any) -> Message:
        replies.append(call_next(message, context))
        return replies[-1]

    return keep


def test_a_leak_ends_the_client(tmp_path: Path) -> None:
    with pytest.raises(LeakError, match="the update was not sent: the client's images"):
        federation(mod(on_leak="raise"), tmp_path)


def test_the_model_of_the_mod_is_not_changed(tmp_path: Path) -> None:
    model = Model(module=network())
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    measuring = LeakageMod(
        model, (3, 16, 16), LocalTraining(steps=1, lr=LR), batch=batch, attack=quick()
    )
    federation(measuring, tmp_path, rounds=2)
    assert all(torch.equal(t, before[n]) for n, t in model.module.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"on_leak": "hide"}, "report, withhold, raise"),
        ({"threshold": math.nan}, "finite threshold"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        mod(**settings)
