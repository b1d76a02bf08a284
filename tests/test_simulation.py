"""A simulated federation: who holds what, what a round computes, and what is kept of it."""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.campaign.record import Record
from gifd.captures import at_weights, read_capture, read_weights
from gifd.cli import app
from gifd.errors import InputError
from gifd.federation.client import TOLERANCE
from gifd.federation.dealing import dealt, held_out
from gifd.federation.defenses import DPSGD, Defense, Noise
from gifd.federation.optimizers import SGD
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.servers import Averaging, Descent, mean
from gifd.federation.simulation import Round, Simulation, Work, accuracy
from gifd.images import read_image, write_image
from gifd.leaves import dead_leaves
from gifd.model import Model
from gifd.tensor_files import read_tensors
from gifd.updates import Update

# -- who holds what --------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    labels=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    clients=st.integers(2, 12),
    own=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_image_goes_to_one_client(
    labels: list[int], clients: int, own: float, seed: int
) -> None:
    kinds = torch.tensor(labels)
    parts = dealt(kinds, clients=clients, own=own, rng=seeded(seed))
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    again = dealt(kinds, clients=clients, own=own, rng=seeded(seed))
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@given(kinds=st.integers(1, 25), clients=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_classes_are_dealt_evenly(kinds: int, clients: int, seed: int) -> None:
    labels = torch.arange(kinds).repeat_interleave(3)
    parts = dealt(labels, clients=clients, own=1.0, rng=seeded(seed))
    owned = [set(labels[part].tolist()) for part in parts]
    assert sum(map(len, owned)) == kinds, "a class has one owner"
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize("own", [0.1, 0.5, 0.9, 0.99])
def test_a_class_is_with_its_owner_as_often_as_asked(own: float) -> None:
    clients, each = 10, 4000
    labels = torch.arange(10).repeat_interleave(each)
    parts = dealt(labels, clients=clients, own=own, rng=seeded(1))
    counts = torch.stack([torch.bincount(labels[part], minlength=10) for part in parts])
    owner = dealt(labels, clients=clients, own=1.0, rng=seeded(1))  # the same deal of the classes
    owners = [
        int(torch.tensor([int((labels[p] == k).sum()) for p in owner]).argmax()) for k in range(10)
    ]
    for kind, holder in enumerate(owners):
        for client in range(clients):
            share = own if client == holder else (1 - own) / (clients - 1)
            deviation = math.sqrt(each * share * (1 - share))
            assert abs(int(counts[client, kind]) - each * share) < 5 * deviation


def test_one_client_has_everything() -> None:
    (part,) = dealt(torch.tensor([0, 1, 0]), clients=1, own=1.0, rng=seeded(0))
    assert part.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "clients", "own"), [([0], 0, 0.5), ([], 2, 0.5), ([0], 2, 1.1), ([0], 1, 0.5)]
)
def test_a_deal_that_cannot_be_is_refused(labels: list[int], clients: int, own: float) -> None:
    kinds = torch.tensor(labels, dtype=torch.long)
    with pytest.raises(InputError, match="expected"):
        dealt(kinds, clients=clients, own=own, rng=seeded(0))


def test_a_fifth_is_held_out() -> None:
    held, taught = held_out(23, seeded(0))
    assert len(held) == 4
    assert sorted([*held.tolist(), *taught.tolist()]) == list(range(23))


# -- what a round computes -------------------------------------------------------------


def network(train: bool = False) -> nn.Module:
    """With batch norm, 8 px, 4 classes, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8 * 9, 4)).double().train(train)


def local(images: int) -> Protocol:
    """Two epochs of momentum."""
    steps = FedAvg.steps_of(2, images, 8)
    return FedAvg(steps=steps, lr=0.05, batch_size=8, optimizer=SGD(momentum=0.9))


def federation(train: bool = False, **settings: Any) -> Simulation:
    rng = seeded(0)
    labels = torch.randint(4, (60,), generator=rng)
    defaults: dict[str, Any] = {
        "model": Model(module=network(train), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)),
        "images": torch.randint(256, (60, 3, 8, 8), generator=rng, dtype=torch.uint8),
        "labels": labels,
        "shares": dealt(labels, clients=3, own=0.6, rng=rng),
        "protocol": local,
    }
    return Simulation(**defaults | settings)


@pytest.mark.parametrize("train", [False, True])
def test_rounds_are_those_of_federated_averaging_in_plain_pytorch(train: bool) -> None:
    """Each client trains a module of its own; states are averaged by the numbers of images."""
    simulation = federation(train)
    model, count = simulation.model, len(simulation.labels)
    module = copy.deepcopy(model.module)
    for done in simulation.rounds(3):
        states: list[dict[str, Tensor]] = []
        for own in simulation.shares:
            net = copy.deepcopy(module)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
            images, labels = simulation.images[own].float() / 255, simulation.labels[own]
            for _ in range(2):
                for first in range(0, len(own), 8):
                    x = model.normalize(images[first : first + 8]).double()
                    optimizer.zero_grad()
                    loss = F.cross_entropy(net(x), labels[first : first + 8])
                    torch.autograd.backward(loss)
                    optimizer.step()
            states.append(net.state_dict())
        for name, tensor in module.state_dict().items():
            pairs = zip(states, simulation.shares, strict=True)
            averaged = sum(state[name].double() * len(own) / count for state, own in pairs)
            assert isinstance(averaged, Tensor)
            tensor.copy_(averaged if tensor.is_floating_point() else averaged.round())
        found = done.after.state()
        assert list(found) == list(module.state_dict())
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-10)
    moved = not torch.equal(found["1.running_mean"], model.state()["1.running_mean"])
    assert moved == train, "buffers move in training mode alone"


def test_the_model_that_is_given_is_not_changed(untouched: Callable[[nn.Module], Any]) -> None:
    simulation = federation(train=True)
    before = {name: tensor.clone() for name, tensor in simulation.model.state().items()}
    with untouched(simulation.model.module):
        list(simulation.rounds(2))
    assert all(torch.equal(t, before[n]) for n, t in simulation.model.state().items())


def test_gradients_of_all_clients_are_the_gradient_of_all_images() -> None:
    simulation = federation(protocol=lambda images: FedSGD(), server=Descent(0.3))
    model = simulation.model
    (done,) = simulation.rounds(1)
    whole = FedSGD()(
        model,
        model.parameters,
        model.buffers,
        simulation.images.double() / 255,
        simulation.labels,
    )
    for name, tensor in model.parameters.items():
        expected = tensor - 0.3 * whole[name]
        torch.testing.assert_close(done.after.parameters[name], expected, rtol=1e-6, atol=1e-9)


def test_equal_numbers_of_images_give_the_plain_mean_exactly() -> None:
    updates = [Update({"w": torch.rand(50, generator=seeded(seed))}) for seed in range(3)]
    plain = (updates[0]["w"] + updates[1]["w"] + updates[2]["w"]) * (1 / 3)
    assert torch.equal(mean(updates, [7, 7, 7])["w"], plain)
    weighted = mean([Update({"w": torch.tensor([v])}) for v in (1.0, 4.0)], [1, 2])
    assert float(weighted["w"]) == pytest.approx(3.0)


@pytest.mark.parametrize("protocol", [FedSGD(), Noise(std=0.1).wrap(FedSGD(), 0)])
def test_gradients_are_not_averaged_as_weights(protocol: Protocol) -> None:
    simulation = federation(protocol=lambda images: protocol)
    with pytest.raises(InputError, match="expected clients that send weight deltas"):
        next(simulation.rounds(1))


def test_draws_depend_on_round_and_client_alone() -> None:
    simulation = federation(batch=5)
    draws = {(n, c): simulation.held(n, c).tolist() for n in (1, 2, 3) for c in (0, 1, 2)}
    for (_, client), held in draws.items():
        assert len(set(held)) == 5
        assert set(held) <= set(simulation.shares[client].tolist())
    assert draws[2, 1] == federation(batch=5).held(2, 1).tolist()
    assert draws[2, 1] != draws[1, 1]
    assert draws[2, 1] != federation(batch=5, seed=1).held(2, 1).tolist()
    work = simulation.work(2, 1)
    assert torch.equal(work.pixels, simulation.images[draws[2, 1]])
    images, labels = work.on("cpu")
    torch.testing.assert_close(images * 255, work.pixels.float(), rtol=0, atol=1e-4)
    assert torch.equal(labels, work.labels)
    assert work.labels.tolist() == simulation.labels[draws[2, 1]].tolist()


@pytest.mark.parametrize("train", [False, True])
def test_the_upload_of_a_round_is_what_an_attacker_replays(train: bool) -> None:
    simulation = federation(train, batch=8)
    *_, done = simulation.rounds(3)
    upload = done.upload(2)
    replayed = upload.replay(*done.works[2].on("cpu"))
    away = float((replayed - upload.update).norm() / upload.update.norm())
    assert away < TOLERANCE
    assert observe(upload).ledger.batch_size == 8
    assert upload.model is done.before


@pytest.mark.parametrize("defense", [Noise(std=0.1), DPSGD(noise=0.1)])
def test_an_upload_does_not_carry_defences(defense: Defense) -> None:
    protocol = defense.wrap(FedAvg(steps=2, lr=0.1), 0)
    (done,) = federation(protocol=lambda images: protocol, batch=2).rounds(1)
    with pytest.raises(InputError, match="expected a client without defences"):
        done.upload(0)


def test_clients_without_enough_images_are_refused() -> None:
    with pytest.raises(InputError, match="at least 50 images for each of 3 clients"):
        federation(batch=50)
    none = [torch.arange(3), torch.arange(0)]
    with pytest.raises(InputError, match="at least 1 images for each of 2 clients, got 0"):
        federation(shares=none)
    with pytest.raises(InputError, match="at least one client"):
        federation(shares=[])


def test_accuracy_is_of_the_mode_that_the_model_is_in() -> None:
    simulation = federation(train=True)
    *_, last = simulation.rounds(4)
    images, labels = simulation.images, simulation.labels
    evaluating = last.after.evaluating()
    with torch.no_grad():
        module = at_weights(last.after.state(), evaluating)[0].module
        guess = module(evaluating.normalize(images.float() / 255).double()).argmax(1)
    assert accuracy(evaluating, images, labels) == float((guess == labels).double().mean())
    assert last.after.training
    assert math.isnan(accuracy(evaluating, images[:0], labels[:0]))


def test_a_state_has_the_names_of_the_module_also_of_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.register_buffer("unsaved", torch.zeros(2), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.two(self.one(x.flatten(1)[:, :4]))
            return found

    model = Model(module=Tied())
    model = model.at({name: tensor + 1 for name, tensor in model.parameters.items()})
    state = model.state()
    assert list(state) == list(model.module.state_dict())
    assert state["two.weight"] is state["one.weight"]
    again, _ = at_weights(state, model)
    assert all(torch.equal(again.parameters[n], t) for n, t in model.parameters.items())


# -- on the command line ---------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of random shapes of 32 px: one colour is dark in each."""
    folder, rng = tmp_path_factory.mktemp("data"), seeded(0)
    for i, image in enumerate(dead_leaves(75, (3, 32, 32), rng)):
        image[i % 3] *= 0.2
        write_image(image, folder / f"{i:02d}_class{i % 3}.png")
    return folder


SMALL = ["--size", "32", "--clients", "3", "--rounds", "3", "--device", "cpu"]
LOCAL = ["--batch-size", "4", "--protocol", "fedavg:lr=0.1,batch_size=2"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    result = run("federate", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_kept_round_is_inverted_by_the_command_that_is_said(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "fed"
    kept = ["--record", "2", "--record", "3", "--record-client", "2", "--record-client", "0"]
    result = run("federate", data, *SMALL, *LOCAL, "--own", "0.7", *kept, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.glob("*/*.safetensors")) == sorted(
        2 * ["before.safetensors", "client-00.safetensors", "client-02.safetensors"]
    )
    assert not (out / "round-001").exists()
    assert [row["round"] for row in rows_of(out)] == [0, 1, 2, 3]
    settings = json.loads((out / "federation.json").read_text())
    assert torch.tensor(settings["shares"]).sum() == 60, "a fifth of 75 is held out"
    told = json.loads((out / "round-003" / "client-02.json").read_text())
    pictures = sorted((out / "round-003" / "client-02").iterdir())
    assert [path.name[2:] for path in pictures] == told["images"]
    for picture, name, label in zip(pictures, told["images"], told["labels"], strict=True):
        assert torch.equal(read_image(picture, size=None), read_image(data / name, size=None))
        assert f"class{label}" in name
    command = shlex.split(result.stdout)
    assert command[:3] == ["gifd", "invert", str(out / "round-003" / "client-02.safetensors")]
    labels = [part for label in told["labels"] for part in ("--label", label)]
    quick = ["--attack", "ig", "--steps", "5", "--restarts", "1", "--json", "--device", "cpu"]
    done = run(*command[1:], *labels, *quick, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = Record.model_validate(json.loads(done.stdout))
    assert record.evidence is not None
    assert record.evidence.explained
    assert record.psnr is not None


def test_a_kept_reply_is_the_weights_that_the_server_averages(data: Path, tmp_path: Path) -> None:
    """With all replies of a round, the next round's weights can be had from the files."""
    every = [part for client in (0, 1, 2) for part in ("--record-client", client)]
    kept = ["--record", "1", "--record", "2", *every]
    result = run("federate", data, *SMALL, *LOCAL, *kept, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    replies = [read_tensors(path) for path in (tmp_path / "round-001").glob("client-*.safetensors")]
    after = read_tensors(tmp_path / "round-002" / "before.safetensors")
    assert len(replies) == 3
    for name, tensor in after.items():
        if tensor.is_floating_point():
            averaged = torch.stack([reply[name] for reply in replies]).mean(0)
            torch.testing.assert_close(averaged, tensor, rtol=1e-5, atol=1e-6)


def test_a_federation_learns(data: Path, tmp_path: Path) -> None:
    protocol = "fedavg:lr=0.003,epochs=3,batch_size=8,optimizer=adam"
    result = run("federate", data, *SMALL, "--protocol", protocol, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    first, *_, last = [row["accuracy"] for row in rows_of(tmp_path)]
    assert last > first + 0.3
    (line,) = result.stdout.splitlines()
    held = json.loads((tmp_path / "round-003" / "client-00.json").read_text())["images"]
    assert f"--batch-size {len(held)} " in line, "all that it has"


def test_clients_that_send_gradients_need_a_rate(data: Path, tmp_path: Path) -> None:
    sgd = [data, *SMALL, "--protocol", "fedsgd", "--batch-size", "2", "--out", tmp_path]
    assert "expected --server-lr with clients that send gradients" in refused(*sgd)
    result = run("federate", *sgd, "--server-lr", "0.1")
    assert result.exit_code == 0, result.output
    quick = ["--attack", "ig", "--steps", "3", "--restarts", "1", "--device", "cpu"]
    done = run(*shlex.split(result.stdout)[1:], *quick, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "whole weights" not in done.stderr, "a gradient was kept"


def test_what_is_done_is_kept_when_it_is_interrupted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Simulation.work

    def some(self: Simulation, number: int, client: int) -> Any:
        if (number, client) == (3, 1):
            raise KeyboardInterrupt
        return work(self, number, client)

    monkeypatch.setattr(Simulation, "work", some)
    kept = ["--record", "1", "--record", "2", "--record", "3", "--out", tmp_path]
    result = run("federate", data, *SMALL, *LOCAL, *kept)
    assert result.exit_code == 130
    assert "interrupted: 2 rounds are over and kept" in result.stderr
    assert [row["round"] for row in rows_of(tmp_path)] == [0, 1, 2]
    assert f"{tmp_path}/round-002/client-00.safetensors" in result.stdout
    assert not (tmp_path / "round-003").exists()


def test_what_cannot_be_federated_is_one_line(data: Path, tmp_path: Path) -> None:
    base = [data, *SMALL, "--out", tmp_path / "out"]
    assert "expected --record from 1 to 3, got 4" in refused(*base, "--record", "4")
    assert "expected --record-client from 0 to 2, got 3" in refused(*base, "--record-client", "3")
    assert "a probability in [0, 1]" in refused(*base, "--own", "1.5")
    assert "expected at least 30 images for each" in refused(*base, "--batch-size", "30")
    assert "expected a class in every path" in refused(*base, "--labels", "kind([0-9])")
    own = tmp_path / "own.py"
    own.write_text("from gifd import ConvNet\ndef net():\n    return ConvNet(2).eval()\n")
    assert "at least 3 classes" in refused(*base, "--victim", f"{own}:net")
    wild = ["--protocol", "fedavg:lr=1e30,steps=3"]
    assert "lower the learning rate" in refused(*base, *wild)
    assert "expected a folder without a federation" in refused(*base)


def test_rounds_in_python_and_on_the_command_line_are_the_same(data: Path, tmp_path: Path) -> None:
    """A round's model is in a file; the client's next update comes out of it by `Work`."""
    result = run("federate", data, *SMALL, *LOCAL, "--record", "2", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    model = catalog.victim("convnet", classes=3, size=32, seed=0)
    before, _ = read_weights(tmp_path / "round-002" / "before.safetensors", model)
    sent = read_capture(tmp_path / "round-002" / "client-00.safetensors", before).update
    told = json.loads((tmp_path / "round-002" / "client-00.json").read_text())
    images = torch.stack([read_image(data / name, size=32) for name in told["images"]])
    protocol = catalog.protocol(LOCAL[-1], images=len(images))
    pixels = (images * 255).round().byte()
    work = Work(pixels=pixels, labels=torch.tensor(told["labels"]), protocol=protocol)
    update = work.done(before).update
    assert float((update - sent).norm() / sent.norm()) < 1e-3, "weights are kept in float32"


def test_a_round_tells_its_parts() -> None:
    simulation = federation()
    first, second = simulation.rounds(2)
    assert isinstance(first, Round)
    assert (first.number, second.number) == (1, 2)
    assert second.before is first.after
    assert len(first.works) == len(first.replies) == 3
    assert Averaging() == simulation.server
