"""NVFlare: the example in its simulator, and its own client runner in this process."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskRouter
from torch import Tensor
from typer.testing import CliRunner

from gifd.attacks import ig
from gifd.campaign.record import Record
from gifd.cli import app as gifd_app
from gifd.errors import InputError
from gifd.federation.protocols import FedAvg
from gifd.integrations.leak import Measure
from gifd.integrations.nvflare import LeakageFilter, Recorded
from gifd.model import Model
from gifd.tensor_files import read_metadata, read_tensors
from gifd.victims.networks import ConvNet

EXAMPLE = Path(__file__).parents[2] / "examples" / "nvflare"
LR = 0.1


# -- the example, in the simulator -----------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the example has run: two clients, two rounds."""
    folder = tmp_path_factory.mktemp("simulated") / "nvflare"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "job.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def updates(folder: Path, number: int) -> Path:
    results = folder / "runs" / "fedavg" / "server" / "simulate_job"
    return results / "updates" / f"round-{number:03d}"


def images(site: int) -> tuple[Tensor, Tensor]:
    """As in the example."""
    from gifd.leaves import dead_leaves

    rng = torch.Generator().manual_seed(site)
    return dead_leaves(1, (3, 32, 32), rng), torch.randint(10, (1,), generator=rng)


@pytest.mark.parametrize("number", [0, 1])
def test_what_the_server_records_is_what_the_clients_sent(simulated: Path, number: int) -> None:
    """Each reply is the step of SGD on the client's images; the next weights are their mean."""
    folder = updates(simulated, number)
    names = sorted(path.stem for path in folder.iterdir())
    assert names == ["before", "client-site-1", "client-site-2"]
    before = read_tensors(folder / "before.safetensors")
    replies = []
    for site in (1, 2):
        path = folder / f"client-site-{site}.safetensors"
        net = ConvNet(10).eval()
        net.load_state_dict(before)
        pixels, labels = images(site)
        gradients = torch.autograd.grad(
            F.cross_entropy(net(pixels), labels), list(net.parameters())
        )
        replies.append(read_tensors(path))
        for (name, own), gradient in zip(net.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(replies[-1][name], own.detach() - LR * gradient)
            assert not torch.equal(replies[-1][name], before[name])
        told = read_metadata(path)
        assert float(told["gifd-explained"]) == 1.0
        assert float(told["gifd-psnr"]) > 12
        assert told["gifd.order"].split("\n") == list(net.state_dict())
    if number == 0:
        following = read_tensors(updates(simulated, 1) / "before.safetensors")
        mean = (replies[0]["fc.weight"] + replies[1]["fc.weight"]) / 2
        torch.testing.assert_close(following["fc.weight"], mean)


def test_a_recorded_update_is_inverted(simulated: Path, tmp_path: Path) -> None:
    folder = updates(simulated, 1)
    options = ["--victim", f"{simulated / 'measured.py'}:model", "--shape", "3,32,32"]
    options += ["--before", str(folder / "before.safetensors"), "--protocol", f"fedavg:lr={LR}"]
    options += ["--attack", "ig", "--evaluations", "100", "--restarts", "1", "--json"]
    options += ["--out", str(tmp_path)]
    update = str(folder / "client-site-2.safetensors")
    done = CliRunner().invoke(gifd_app, ["invert", update, *options])
    assert done.exit_code == 0, done.output
    record = Record.model_validate(json.loads(done.stdout))
    pixels, labels = images(2)
    assert record.evidence is not None
    assert record.evidence.explained
    assert record.label_source == "inferred"
    assert record.images[0].label_used == int(labels)
    from gifd.images import read_image

    (found,) = tmp_path.glob("trials/*/reconstruction.png")
    error = float((read_image(found, size=32)[None] - pixels).square().mean())
    assert error < float((pixels.mean() - pixels).square().mean()), "nearer than its mean"


# -- a client's runner ------------------------------------------------------------------------


def network() -> ConvNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConvNet(5, width=4).eval()


def batch(result: Shareable, fl_ctx: FLContext) -> tuple[Tensor, Tensor]:
    """The only image of `site-1`: a smooth gradient of colours."""
    assert fl_ctx.get_identity_name() == "site-1"
    rng = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 3, 3, generator=rng)
    pixels = F.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=True)
    return pixels, torch.randint(5, (1,), generator=rng)


def measure(threshold: float = 0.0, on_leak: str = "report", lr: float = LR) -> Measure:
    return Measure(
        model=Model(module=network()),
        image_shape=(3, 16, 16),
        protocol=FedAvg(steps=1, lr=lr),
        attack=ig(restarts=1).with_steps(20),
        threshold=threshold,
        on_leak=on_leak,
    )


HERE = f"{Path(__file__)}"


def leakage(options: str = "", own: bool = True) -> LeakageFilter:
    text = f"{HERE}:measure" + (f":{options}" if options else "")
    return LeakageFilter(text, f"{HERE}:batch" if own else None)


class Trainer(Executor):  # type: ignore[misc]
    """One step of SGD; returns the weights or their change as NumPy's arrays."""

    def __init__(self, kind: str = DataKind.WEIGHTS) -> None:
        super().__init__()
        self.kind = kind

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        net = network()
        given = from_shareable(shareable).data
        net.load_state_dict({name: torch.as_tensor(array) for name, array in given.items()})
        pixels, labels = batch(shareable, fl_ctx)
        torch.autograd.backward(F.cross_entropy(net(pixels), labels))
        torch.optim.SGD(net.parameters(), lr=LR).step()
        state = net.state_dict()
        if self.kind == DataKind.WEIGHT_DIFF:
            state = {name: tensor - torch.as_tensor(given[name]) for name, tensor in state.items()}
        for array in given.values():
            array *= 0  # a trainer may do as it likes with what it got
        found = {name: tensor.numpy() for name, tensor in state.items()}
        return DXO(self.kind, found, {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}).to_shareable()


class Engine:
    """What a runner needs of the client around it."""

    def __init__(self) -> None:
        self.contexts = FLContextManager(self, "site-1", "job")

    def register_aux_message_handler(self, *args: Any, **kwargs: Any) -> None: ...

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None: ...

    def new_context(self) -> FLContext:
        return self.contexts.new_context()


def chained(filters: Sequence[Filter], kind: str) -> list[Filter]:
    """As NVFlare's configurator marks them."""
    for each in filters:
        each.set_prop(FilterContextKey.CHAIN_TYPE, kind)
    return list(filters)


def reply(
    made: Callable[[], Filter], trainer: Trainer | None = None, incoming: bool = True
) -> Shareable:
    """What the runner of `site-1` sends for one task, with a filter in both chains."""
    router = TaskRouter()
    router.add_executor(["train"], Trainer() if trainer is None else trainer)
    data = chained([made()] if incoming else [], FilterChainType.TASK_DATA_CHAIN)
    result = chained([made()], FilterChainType.TASK_RESULT_CHAIN)
    config = ClientRunnerConfig(router, {"train/in": data}, {"train/out": result})
    engine = Engine()
    runner = ClientRunner({}, config, "job", engine)
    fl_ctx = engine.new_context()
    fl_ctx.set_peer_context(FLContextManager(None, "server", "job").new_context())
    state = {name: tensor.numpy().copy() for name, tensor in network().state_dict().items()}
    task = DXO(DataKind.WEIGHTS, state).to_shareable()
    return runner._process_task(TaskAssignment("train", "1", task), fl_ctx)


@pytest.fixture(scope="module")
def whole() -> DXO:
    """What is sent where nothing is withheld."""
    return from_shareable(reply(leakage))


def test_what_a_reply_gives_away_is_in_its_meta(whole: DXO) -> None:
    assert whole.get_meta_prop("gifd-leak") == 1.0
    assert whole.get_meta_prop("gifd-explained") == 1.0
    assert whole.get_meta_prop("gifd-psnr") > 5
    assert whole.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 1, "the client's own is kept"
    assert whole.get_meta_prop(MetaKey.FILTER_HISTORY) == ["LeakageFilter"]


def test_a_change_of_weights_is_measured_as_the_weights_are(whole: DXO) -> None:
    change = from_shareable(reply(leakage, Trainer(DataKind.WEIGHT_DIFF)))
    assert change.data_kind == DataKind.WEIGHT_DIFF
    assert change.get_meta_prop("gifd-explained") == 1.0
    found, wanted = (dxo.get_meta_prop("gifd-psnr") for dxo in (change, whole))
    assert found == pytest.approx(wanted, abs=0.5), "rounding is all that differs"


def test_without_the_batch_a_client_of_stand_ins_is_attacked() -> None:
    dxo = from_shareable(reply(lambda: leakage(own=False)))
    assert dxo.get_meta_prop("gifd-explained") == 1.0
    assert dxo.get_meta_prop("gifd-psnr") > 3


def test_a_wrong_protocol_is_not_called_safe() -> None:
    dxo = from_shareable(reply(lambda: leakage("threshold=90,lr=0.0001")))
    assert dxo.get_meta_prop("gifd-leak") == 0.0
    assert dxo.get_meta_prop("gifd-explained") == 0.0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("on_leak=withhold", ReturnCode.TASK_RESULT_FILTER_ERROR),
        ("on_leak=raise", ReturnCode.UNSAFE_JOB),
        ("on_leak=withhold,threshold=90", ReturnCode.OK),
    ],
)
def test_a_leak_is_not_sent(options: str, code: str) -> None:
    found = reply(lambda: leakage(options))
    assert found.get_return_code() == code
    assert ("DXO" in found) is (code == ReturnCode.OK), "the weights go only with the code OK"


def test_a_reply_that_cannot_be_measured_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    found = reply(leakage, incoming=False)
    assert found.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert "list LeakageFilter under task_data_filters" in caplog.text


def kept(measuring: Filter, dxo: DXO, fl_ctx: FLContext) -> None:
    (measuring,) = chained([measuring], FilterChainType.TASK_DATA_CHAIN)
    measuring.process(dxo.to_shareable(), fl_ctx)


def test_a_task_that_does_not_show_the_weights_is_refused() -> None:
    weights = DXO(DataKind.WEIGHTS, {"fc.bias": [1.0]})
    for dxo, told in (
        (DXO(DataKind.WEIGHTS, weights.data, {MetaKey.PROCESSED_ALGORITHM: "HE"}), "by HE: put"),
        (DXO(DataKind.WEIGHT_DIFF, weights.data), "expected whole weights in a task"),
        (DXO(DataKind.COLLECTION, {"a": weights, "b": weights}), "expected one DXO of weights"),
        (DXO(DataKind.WEIGHTS, {"fc.bias": "text"}), "expected arrays of numbers"),
    ):
        with pytest.raises(InputError, match=told):
            kept(leakage(), dxo, Engine().new_context())


def test_a_site_and_a_job_may_both_measure() -> None:
    fl_ctx = Engine().new_context()
    for _ in range(2):
        kept(leakage(), DXO(DataKind.WEIGHTS, {"fc.bias": [1.0]}), fl_ctx)


def test_an_error_of_the_client_passes() -> None:
    failed = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    assert leakage().process(failed, Engine().new_context()) is failed


@pytest.mark.parametrize(
    ("measure", "batch", "told"),
    [
        ("measure", None, "expected a measure as 'package.module:object'"),
        (f"{HERE}:nothing", None, "expected 'nothing' in"),
        (f"{HERE}:network", None, "to return Measure, got ConvNet"),
        (f"{HERE}:measure", f"{HERE}:LR", "expected .* to be of type Callable"),
        (f"{HERE}:measure:on_leak=hide", None, "report, withhold, raise"),
        (f"{HERE}:measure:threshold=nan", None, "finite"),
    ],
)
def test_names_that_are_not_allowed(measure: str, batch: str | None, told: str) -> None:
    with pytest.raises(InputError, match=told):
        LeakageFilter(measure, batch)


# -- the recorder -----------------------------------------------------------------------------


def passed(recorder: Filter, kind: str, dxo: DXO, client: str, number: int) -> Shareable:
    """What the server's filter makes of a task or a result of this client."""
    fl_ctx = FLContextManager(None, "server", "job").new_context()
    fl_ctx.set_peer_context(FLContextManager(None, client, "job").new_context())
    shareable = dxo.to_shareable()
    if kind == FilterChainType.TASK_DATA_CHAIN:
        shareable.set_header(AppConstants.CURRENT_ROUND, number)
    else:
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
    (recorder,) = chained([recorder], kind)
    return recorder.process(shareable, fl_ctx)


def test_a_client_that_received_other_weights_has_a_file_of_them(tmp_path: Path) -> None:
    recorder = Recorded(str(tmp_path))
    for number, client, value in ((0, "a", 1.0), (0, "b", 1.0), (0, "c", 2.0), (1, "a", 3.0)):
        dxo = DXO(DataKind.WEIGHTS, {"w": torch.tensor([value])})
        passed(recorder, FilterChainType.TASK_DATA_CHAIN, dxo, client, number)
    found = {
        f"{path.parent.name}/{path.stem}": float(read_tensors(path)["w"])
        for path in tmp_path.glob("*/*.safetensors")
    }
    wanted = {"round-000/before": 1.0, "round-000/before-c": 2.0, "round-001/before": 3.0}
    assert found == wanted


def test_a_change_is_recorded_as_it_was_sent(tmp_path: Path) -> None:
    meta = {"gifd-psnr": math.nan, MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
    dxo = DXO(DataKind.WEIGHT_DIFF, {"w": torch.tensor([0.5])}, meta)
    sent = passed(Recorded(str(tmp_path)), FilterChainType.TASK_RESULT_CHAIN, dxo, "a.b-1", 4)
    assert from_shareable(sent).data is dxo.data, "nothing is changed on its way"
    path = tmp_path / "round-004" / "client-a.b-1.safetensors"
    assert torch.equal(read_tensors(path)["w"], torch.tensor([0.5]))
    assert read_metadata(path) == {"gifd.order": "w", "gifd-psnr": "nan"}


def test_a_client_cannot_name_another_folder(tmp_path: Path) -> None:
    dxo = DXO(DataKind.WEIGHTS, {"w": torch.tensor([0.5])})
    with pytest.raises(InputError, match="plain name of a client"):
        passed(Recorded(str(tmp_path)), FilterChainType.TASK_RESULT_CHAIN, dxo, "../../x", 0)
    assert not list(tmp_path.iterdir())
