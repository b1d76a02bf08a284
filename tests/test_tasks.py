"""Tasks: other labels than one class an image, from the client to the answer."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacks import dlg, ensemble, gifd, ig, peel
from gifd.audit import fit
from gifd.campaign.record import Record, label
from gifd.campaign.trial import Trial
from gifd.cli import app
from gifd.errors import InputError, ModelError, UnexplainedError
from gifd.federation.client import Client
from gifd.federation.defenses import Noise
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.images import write_image
from gifd.leakage.labels import label_hypotheses
from gifd.leaves import dead_leaves
from gifd.metrics import PSNR
from gifd.model import Loss, Model
from gifd.priors.dcgan import dcgan_stages
from gifd.priors.generator import Generator
from gifd.task import Task, differ
from gifd.victims import ConvNet

SIDE = 16


class Segmenter(nn.Module):
    """A class at each of 8 x 8 places."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(8, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Squeezed(nn.Module):
    """One number an image, without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ConvNet(1, width=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)  # type: ignore[no-any-return]


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(logits, labels)


@dataclass(frozen=True)
class Case:
    """A victim, its loss, labels of three images, and what of them one update shows."""

    module: Callable[[], nn.Module]
    loss: Loss
    labels: Tensor
    task: Task
    source: str | None


RNG = torch.Generator().manual_seed(0)
CASES: dict[str, Case] = {
    "classes, smoothed": Case(
        lambda: ConvNet(4, width=4),
        smoothed,
        torch.tensor([2, 0, 3]),
        Task(outputs=(4,), targets=(), numbers=False),
        "inferred",
    ),
    "one logit, two classes": Case(
        lambda: ConvNet(1, width=4),
        binary,
        torch.tensor([1, 0, 1]),
        Task(outputs=(1,), targets=(), numbers=False),
        "inferred",
    ),
    "several labels an image": Case(
        lambda: ConvNet(5, width=4),
        F.binary_cross_entropy_with_logits,
        torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
        Task(outputs=(5,), targets=(5,), numbers=True),
        "inferred",
    ),
    "one label, no axis": Case(
        Squeezed,
        F.binary_cross_entropy_with_logits,
        torch.tensor([1.0, 0.0, 0.0]),
        Task(outputs=(), targets=(), numbers=True),
        "inferred",
    ),
    "regression": Case(
        lambda: ConvNet(2, width=4),
        F.mse_loss,
        3 * torch.randn(3, 2, generator=RNG),
        Task(outputs=(2,), targets=(2,), numbers=True),
        "inferred",
    ),
    "robust regression": Case(
        lambda: ConvNet(2, width=4),
        F.huber_loss,
        0.5 * torch.randn(3, 2, generator=RNG),
        Task(outputs=(2,), targets=(2,), numbers=True),
        "inferred",
    ),
    "a class a place": Case(
        Segmenter,
        F.cross_entropy,
        torch.randint(3, (3, 8, 8), generator=RNG),
        Task(outputs=(3, 8, 8), targets=(8, 8), numbers=False),
        None,
    ),
    "a number a place": Case(
        lambda: Segmenter(1),
        F.binary_cross_entropy_with_logits,
        torch.rand(3, 1, 8, 8, generator=RNG).round(),
        Task(outputs=(1, 8, 8), targets=(1, 8, 8), numbers=True),
        None,
    ),
    "a convolution as head": Case(
        lambda: nn.Sequential(Segmenter(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        F.cross_entropy,
        torch.tensor([2, 0, 3]),
        Task(outputs=(4,), targets=(), numbers=False),
        "estimated",
    ),
    "log-softmax inside": Case(
        lambda: nn.Sequential(ConvNet(4, width=4), nn.LogSoftmax(1)),
        nll,
        torch.tensor([2, 0, 3]),
        Task(outputs=(4,), targets=(), numbers=False),
        "estimated",
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def model_of(case: Case) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(module=case.module().eval().double(), loss=case.loss)


def images(batch: int) -> Tensor:
    return dead_leaves(batch, (3, SIDE, SIDE), torch.Generator().manual_seed(1)).double()


def observed(
    case: Case, batch: int = 1, protocol: Protocol | None = None, *, grant: bool = True, **more: Any
) -> Observation:
    client = Client(model=model_of(case), protocol=protocol or FedSGD(), grant_labels=grant, **more)
    upload, _ = client.step(images(batch), case.labels[:batch])
    return observe(upload, defenses=client.defenses)


@every_case
def test_the_task_is_known_by_its_loss(name: str) -> None:
    case = CASES[name]
    assert model_of(case).task((3, SIDE, SIDE)) == case.task


@pytest.mark.numerical
@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=3, lr=0.05, batch_size=2)], ids=repr)
@every_case
def test_the_truth_replays_to_the_update(name: str, protocol: Protocol) -> None:
    case = CASES[name]
    observation = observed(case, 3, protocol)
    labels = observation.ledger.labels
    assert labels is not None
    truth = observation.replay(images(3), labels)
    assert float((truth - observation.update).norm()) <= 1e-12 * float(truth.norm())
    own = {n: p.requires_grad_() for n, p in model_of(case).module.named_parameters()}
    if protocol == FedSGD():  # against plain autograd
        module = model_of(case).module
        loss = case.loss(module(images(3)), labels)
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        for slope, seen in zip(slopes, observation.update.tensors, strict=True):
            torch.testing.assert_close(slope, seen, rtol=1e-9, atol=1e-12)
    assert own


@every_case
def test_attacks_search_behind_every_task(name: str) -> None:
    case = CASES[name]
    observation = observed(case, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages = dcgan_stages(latent=4, width=4, channels=3, doublings=2)
        prior = Generator(stages, latent=(4, 1, 1))
    for attack in (
        ig(restarts=2).with_steps(4),
        gifd(prior, restarts=2).with_evaluations(40),
        ensemble(prior, features=0).with_evaluations(12),
        dlg().with_steps(4),
        peel(),
    ):
        if attack.name == "peel":  # it solves, or says that it cannot
            with suppress(UnexplainedError):
                assert attack(observation).labels.shape == case.labels[:2].shape
            continue
        if attack.name == "dlg" and name in ("one logit, two classes", "log-softmax inside"):
            with pytest.raises(InputError, match="takes probabilities"):
                attack(observation)
            continue
        found = attack(observation)
        assert found.images.shape == (2, 3, SIDE, SIDE)
        assert torch.isfinite(torch.tensor(found.distance))
        assert found.labels.shape == case.labels[:2].shape
        assert found.labels.is_floating_point() is case.task.numbers
        assert "label" in found._repr_html_()


@pytest.mark.numerical
@every_case
def test_the_labels_of_one_image_are_read_or_the_reader_says_no(name: str) -> None:
    case = CASES[name]
    for index in range(3):
        client = Client(model=model_of(case))
        upload, _ = client.step(images(3)[index : index + 1], case.labels[index : index + 1])
        observation = observe(upload)
        if case.source is None:
            with pytest.raises(InputError, match=r"searches them \(dlg\)") as error:
                label_hypotheses(observation)
            assert "\n" not in str(error.value)
            continue
        found, source = label_hypotheses(observation)
        torch.testing.assert_close(
            found[0].double(), case.labels[index : index + 1].double(), rtol=1e-6, atol=1e-6
        )
        assert source == case.source


@pytest.mark.numerical
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.sampled_from(["mse", "bce"]))
@settings(max_examples=20)
def test_numbers_are_solved_exactly(values: list[float], kind: str) -> None:
    target = torch.tensor([values], dtype=torch.float64)
    loss = F.mse_loss if kind == "mse" else F.binary_cross_entropy_with_logits
    case = Case(
        lambda: ConvNet(3, width=4),
        loss,
        target,
        Task(outputs=(3,), targets=(3,), numbers=True),
        "",
    )
    found, source = label_hypotheses(observed(case, grant=False))
    assert source == "inferred"
    torch.testing.assert_close(found[0], target, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("batch", "more", "says"),
    [
        (2, {}, "one image to read its labels, which are numbers, got 2"),
        (1, {"protocol": FedAvg(steps=2, lr=0.1)}, "gradient of one step"),
        (1, {"defenses": (Noise(std=1.0),)}, "some targets of one image explain"),
    ],
)
def test_numbers_that_cannot_be_read_are_one_line(
    batch: int, more: dict[str, Any], says: str
) -> None:
    case = CASES["several labels an image"]
    with pytest.raises(InputError, match=says) as error:
        label_hypotheses(observed(case, batch, grant=False, **more))
    assert "\n" not in str(error.value)
    assert "dlg" in str(error.value)


def test_several_labels_are_searched_with_the_image() -> None:
    """A smooth victim, as L-BFGS converges on it: DLG finds the labels of a batch of two."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Sigmoid(), nn.Linear(24, 3))
    model = Model(module=module.double(), loss=F.binary_cross_entropy_with_logits)
    rng = torch.Generator().manual_seed(2)
    truth = torch.tensor([[1.0, 0.0, 1.0]])
    upload, _ = Client(model=model).step(torch.rand(1, 3, 4, 4, generator=rng).double(), truth)
    found = dlg().with_steps(400)(observe(upload))
    assert found.label_source == "searched"
    assert found.distance < 1e-6
    torch.testing.assert_close(found.labels, truth.double(), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "labels", "says"),
    [
        ("several labels an image", torch.tensor([1]), r"numbers of shape \(B, 5\)"),
        ("several labels an image", torch.full((1, 5), torch.nan), "that are finite"),
        ("regression", torch.zeros(1, 3), r"numbers of shape \(B, 2\)"),
        ("a class a place", torch.zeros(1, 8, 9).long(), r"whole numbers .* \(B, 8, 8\)"),
        ("a class a place", torch.full((1, 8, 8), 3), "from 0 to 2"),
        ("one logit, two classes", torch.tensor([2]), "from 0 to 1"),
        ("classes, smoothed", torch.tensor([1.0]), r"whole numbers \(.long\(\)\) of shape \(B,\)"),
        ("classes, smoothed", torch.tensor([4]), "from 0 to 3"),
    ],
)
def test_labels_that_do_not_fit_the_loss_are_one_line(name: str, labels: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Client(model=model_of(CASES[name])).step(images(1), labels)
    assert "\n" not in str(error.value)


def test_a_loss_that_takes_no_labels_is_one_line() -> None:
    def odd(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs, torch.zeros(len(outputs), 77))

    with pytest.raises(ModelError, match="expected a loss of the outputs and labels") as error:
        Client(model=Model(module=ConvNet(3, width=4).eval(), loss=odd)).step(
            images(1).float(), torch.tensor([1])
        )
    assert "\n" not in str(error.value)


@every_case
def test_the_fit_explains_an_honest_client(name: str) -> None:
    case = CASES[name]
    observation = observed(case, 1)
    assert fit(observation, observation.ledger.labels, clients=12).explained
    client = Client(model=observation.model)
    unknown, _ = client.step(images(1), case.labels[:1])
    assert fit(observe(unknown), clients=12).clients == 12


@pytest.mark.parametrize("name", ["several labels an image", "a class a place", "a number a place"])
def test_the_record_holds_what_fits(name: str) -> None:
    case = CASES[name]
    trial = Trial(
        names=["one"],
        images=images(1),
        labels=case.labels[:1],
        client=Client(model=model_of(case), grant_labels=True),
        victim={},
        attack=ig(restarts=1).with_steps(2),
        metrics=[PSNR()],
    )
    record = trial.run().record
    (image,) = record.images
    assert image.label == image.label_used == label(case.labels[0])
    assert type(record).model_validate_json(record.model_dump_json()) == record


def test_images_differ_if_any_of_their_labels_does() -> None:
    maps = torch.zeros(3, 2, 2)
    maps[1, 0, 1] = 1
    expected = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
    assert torch.equal(differ(maps), expected)
    assert torch.equal(differ(torch.tensor([0, 1, 0])), expected)


OWN = """
import torch
import torch.nn.functional as F
from gifd import Model, ConvNet

def several():
    torch.manual_seed(0)
    loss = F.binary_cross_entropy_with_logits
    return Model(module=ConvNet(3, width=4).eval(), loss=loss)

def maps():
    return Model(module=torch.nn.Conv2d(3, 4, 1))
"""


def test_labels_that_are_numbers_come_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    write_image(images(1)[0], tmp_path / "one.png")
    base = ["attack", str(tmp_path / "one.png"), "--shape", "16,16", "--attack", "ig"]
    base += ["--steps", "2", "--restarts", "1", "--out", str(tmp_path / "out"), "--json"]
    several = ["--victim", f"{tmp_path / 'own.py'}:several"]
    done = CliRunner().invoke(app, [*base, *several, "--label", "1,0,1"])
    assert done.exit_code == 0, done.output
    (image,) = Record.model_validate_json(done.stdout).images
    assert image.label == [1, 0, 1]
    assert image.label_used == pytest.approx([1, 0, 1], abs=1e-2)
    maps = ["--victim", f"{tmp_path / 'own.py'}:maps"]
    for arguments, says in (
        ([*several, "--label", "1,0"], "3 numbers separated by commas"),
        ([*several, "--label", "cat"], "3 numbers separated by commas"),
        ([*several], "one --label for all images"),
        ([*maps, "--label", "1"], "attack it from Python"),
        (["--victim", "convnet", "--label", "1,0"], "a class, from 0"),
    ):
        wrong = CliRunner().invoke(app, [*base, *arguments])
        assert wrong.exit_code == 2, wrong.output
        (line,) = [each for each in wrong.stderr.splitlines() if each.startswith("error: ")]
        assert says in line
