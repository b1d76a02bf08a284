"""Grey and oblong images: every attack, and the command line from file to report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import Attack, ensemble, gifd, lti
from gifd.campaign.record import Record
from gifd.cli import app
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.images import read_image
from gifd.metrics import PSNR, SSIM, score
from gifd.model import Model
from gifd.priors import Generator
from gifd.priors.dcgan import dcgan_stages
from gifd.priors.sides import base_of
from gifd.search import DeepPrior, Draw, Learned, Public, SearchContext
from gifd.victims import normalization

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((1, 28, 28), (3, 48, 32))
LARGE: Shape = (3, 224, 224)


def victim(shape: Shape, text: str = "convnet:width=4") -> Model:
    return catalog.victim(text, classes=4, size=shape[1:], seed=0, channels=shape[0])


class Narrowing(nn.Module):
    """A convolution of stride 1 with fewer positions than channels, which `peel` begins at."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            *(nn.Conv2d(channels, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(48, 48, 3, 2, 1), nn.ReLU()),
        )
        self.last, self.head = nn.Conv2d(48, 48, 3, 1, 1), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.last(self.down(x))).mean((2, 3)))
        return logits


def private(shape: Shape, seed: int = 1) -> Tensor:
    coarse = torch.rand(1, shape[0], 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=shape[1:], mode="bilinear").clamp(0, 1)


def public(shape: Shape) -> Public:
    return Public(images=torch.cat([private(shape, seed) for seed in range(2, 8)]))


def plain(name: str, _: Shape) -> Attack:
    return catalog.attack(name, prior=None, preset="strongest", restarts=2).with_steps(4)


BUILT: dict[str, Callable[[Shape], Attack]] = {
    **{name: partial(plain, name) for name in ("ig", "dlg", "idlg", "gradinversion", "peel")},
    "fedleak": lambda shape: small(catalog.attack("fedleak", prior=None, preset="strongest")),
    "lti, public": lambda shape: small(lti(public=public(shape))),
    "lti, shapes": lambda shape: small(lti()),
    "ensemble, public": lambda shape: ensemble(public=public(shape), rounds=1).with_steps(8),
    "ensemble, shapes": lambda shape: ensemble(rounds=1).with_steps(8),
}
CHEAP = ("ig", "ensemble, shapes")
TABLE = [(name, shape) for name in BUILT for shape in SHAPES] + [(name, LARGE) for name in CHEAP]


def small(attack: Attack) -> Attack:
    """With a narrow deep prior and a small perceptron."""
    (phase,) = attack.phases
    if isinstance(phase.space, DeepPrior):
        phase = dataclasses.replace(phase, space=DeepPrior(width=8))
    if isinstance(phase.begin, Learned):
        begin = dataclasses.replace(phase.begin, hidden=8, inputs=100, epochs=2)
        phase = dataclasses.replace(phase, begin=begin)
    return dataclasses.replace(attack, phases=(phase,)).with_steps(4)


@pytest.mark.parametrize(("name", "shape"), TABLE, ids=str)
def test_every_attack_without_a_prior_takes_every_shape(
    name: str, shape: Shape, seeded: Callable[[int, Callable[[], nn.Module]], nn.Module]
) -> None:
    image, model = private(shape), victim(shape)
    if name == "peel":
        module = seeded(0, lambda: Narrowing(shape[0])).double()
        model, image = Model(module=module, mean=model.mean, std=model.std), image.double()
    upload, secret = Client(model=model).step(image, torch.tensor([2]))
    found = BUILT[name](shape)(observe(upload), seed=0)
    assert found.images.shape == (1, *shape)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert name == "dlg" or found.labels.tolist() == [2]
    measured = score(found.images, secret.images, [PSNR(), SSIM()])
    assert all(np.isfinite(value) for (value,) in measured.values())
    if name == "peel":  # a search that is not told what is inside ends near 12
        assert measured["psnr"][0] > 20


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 32), (1, 32, 16)])
def test_a_larger_coloured_prior_is_framed_as_pictures_are(shape: Shape) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = Generator(
            dcgan_stages(latent=8, width=8, channels=3, doublings=3), latent=(8, 1, 1)
        )
    framed = whole.framed(shape)
    assert framed.image_shape == shape
    seen, shown = whole.sample(2, seed=3), framed.sample(2, seed=3)
    assert shown.shape == (2, *shape)
    side = max(shape[1:])
    covering = F.adaptive_avg_pool2d(seen, side)
    top, left = (side - shape[1]) // 2, (side - shape[2]) // 2
    expected = covering[..., top : side - top, left : side - left]
    if shape[0] == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        expected = (expected * weights).sum(1, keepdim=True)
    assert torch.allclose(shown, expected, atol=1e-6)
    upload, _ = Client(model=victim(shape)).step(private(shape), torch.tensor([1]))
    found = gifd(framed, features=1, restarts=1).with_steps(10)(observe(upload), seed=0)
    assert found.images.shape == (1, *shape)
    for other in ((3, 48, 32), (2, 28, 28)):
        with pytest.raises(InputError, match="expected a shape within"):
            whole.framed(other)
    assert whole.framed((3, 32, 32)) is whole


@pytest.mark.parametrize(
    ("sides", "base"),
    [
        ((64, 64), (4, 4, 4)),
        ((28, 28), (7, 7, 2)),
        ((48, 32), (6, 4, 3)),
        ((224, 224), (7, 7, 5)),
        ((8, 12), (4, 6, 1)),
        ((20, 44), (5, 11, 2)),
    ],
)
def test_a_deep_prior_doubles_a_base(sides: tuple[int, int], base: tuple[int, int, int]) -> None:
    assert base_of(*sides) == base
    context = SearchContext(
        model=victim((3, *sides)), generator=None, image_shape=(3, *sides), batch=1
    )
    space = DeepPrior(width=8)
    state = space.start(context, Draw(restarts=1, rng=torch.Generator().manual_seed(0)))
    assert space.pictures(context, state).shape == (1, 1, 3, *sides)


@pytest.mark.parametrize("sides", [(30, 30), (28, 27), (4, 8)])
def test_a_deep_prior_refuses_other_sides(sides: tuple[int, int]) -> None:
    upload, _ = Client(model=victim((3, *sides))).step(private((3, *sides)), torch.tensor([1]))
    attack = small(catalog.attack("fedleak", prior=None, preset="strongest"))
    with pytest.raises(InputError, match="multiples of 4 for a deep prior"):
        attack(observe(upload))


VICTIMS = ("resnet18", "convnet", "lenet", "vgg11:hidden=8", "vit:width=8,heads=2,depth=1")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", VICTIMS)
def test_victims_take_the_channels_and_sides_that_they_are_told(text: str, shape: Shape) -> None:
    model = victim(shape, text)
    assert len(model.mean) == len(model.std) == shape[0]
    assert model.classes(shape) == 4
    assert model.representations(private(shape)).ndim == 2


def test_the_channels_of_a_victim_of_your_own_are_found_or_told(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(channels, size):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.Flatten(),\n"
        "        nn.Linear(4 * (size[0] // 2) * (size[1] // 2), 3))\n"
        "grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "    nn.Linear(4, 3))\n"
        "flat = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 3))\n"
    )
    told = catalog.victim(f"{tmp_path}/own.py:net", classes=3, size=(28, 20), seed=0, channels=1)
    assert told.classes((1, 28, 20)) == 3
    found = catalog.victim(f"{tmp_path}/own.py:grey", classes=3, size=28, seed=0)
    assert (tuple(found.mean), tuple(found.std)) == normalization(1) == ((0.449,), (0.226,))
    without = catalog.victim(f"{tmp_path}/own.py:flat", classes=3, size=28, seed=0, channels=1)
    assert without.classes((1, 28, 28)) == 3
    with pytest.raises(InputError, match="3 channels for 'efficientnet-lite0', got 1"):
        catalog.victim("efficientnet-lite0", classes=3, size=28, seed=0, channels=1)


# -- the command line ----------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def grey16(tmp_path: Path) -> Path:
    """28 x 28 greys of 16 bits, no two of them equal in 8."""
    y, x = np.mgrid[0:28, 0:28]
    values = 9000 + 61 * x + 1900 * y
    path = tmp_path / "digit.png"
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


@pytest.fixture
def oblong(tmp_path: Path) -> Path:
    """A colour ramp of 100 x 40 pixels."""
    y, x = np.mgrid[0:100, 0:40]
    path = tmp_path / "ramp.png"
    colours = np.stack([x * 6, y * 2, 255 - y * 2], -1)
    Image.fromarray(colours.astype(np.uint8)).save(path)
    return path


def test_a_grey_picture_of_16_bits_from_file_to_report(grey16: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    attacks = ["--attack", "ig", "--attack", "ensemble", "--prior", "none"]
    shared = ["--victim", "lenet", "--evaluations", "20", "--restarts", 1, "--json"]
    result = run("attack", grey16, *attacks, *shared, "--shape", "1,28,28", "--out", out)
    assert result.exit_code == 0, result.output
    searched, learnt = (Record.model_validate_json(line) for line in result.stdout.splitlines())
    for record in (searched, learnt):
        assert None not in (record.psnr, record.ssim, record.stlpips)
        assert record.ledger["image_shape"] == [1, 28, 28]
        assert record.victim["mean"] == [0.449]
    assert learnt.settings["prior"] is None
    assert (out / "report.html").stat().st_size > 10_000
    with Image.open(out / "trials/0001-digit-ig-strongest/private.png") as written:
        assert (written.mode, written.size) == ("L", (28, 28))
    with Image.open(out / "strip.png") as strip:
        assert strip.mode == "RGB"


def test_an_oblong_picture_from_file_to_report(oblong: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shared = ["--victim", "lenet", "--attack", "ig", "--steps", "3", "--restarts", 1, "--json"]
    result = run("attack", oblong, *shared, "--shape", "48,32", "--out", out)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["ledger"]["image_shape"] == [3, 48, 32]
    assert record["images"][0]["original_size"] == [40, 100]
    assert "images: 1 of 1 cropped to the centre of 48 : 32\n" in result.stderr
    with Image.open(out / "trials/0001-ramp-ig-strongest/private.png") as written:
        assert written.size == (32, 48)
    default = run("attack", oblong, *shared, "--attack", "gifd", "--steps", 8, "--shape", "3,48,32")
    assert default.exit_code == 0, "faces64 is framed: " + default.output


def test_pictures_that_a_metric_cannot_compare_are_not_scored_by_it(
    oblong: Path, tmp_path: Path
) -> None:
    shared = ["--victim", "lenet", "--attack", "ig", "--steps", "2", "--restarts", 1, "--json"]
    result = run("attack", oblong, *shared, "--shape", "20,16", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "not scored by stlpips: ST-LPIPS needs images of at least 21x21" in result.stderr
    record = json.loads(result.stdout)
    assert record["stlpips"] is None
    assert record["psnr"] is not None


def test_a_captured_update_of_oblong_greys_is_compared(oblong: Path, tmp_path: Path) -> None:
    shape = (1, 40, 20)
    image = read_image(oblong, size=shape[1:], channels=1)[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(1026, 3))
    torch.save(net, tmp_path / "net.pt")
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.Tanh(), nn.Flatten(),\n"
        "        nn.Linear(1026, 3)).eval()\n"
    )
    model = Model(module=net.eval(), mean=(0.449,), std=(0.226,))
    upload, _ = Client(model=model).step(image, torch.tensor([1]))
    upload.update.save(tmp_path / "update.safetensors")
    given = ["--victim", f"{tmp_path}/own.py:net", "--shape", "40,20", "--private", oblong]
    quick = ["--attack", "ig", "--steps", "4", "--restarts", 1, "--out", tmp_path / "out"]
    result = run("invert", tmp_path / "update.safetensors", *given, *quick, "--json")
    assert result.exit_code == 0, result.output
    record = Record.model_validate_json(result.stdout)
    assert record.psnr is not None
    assert record.stlpips is None
    wrong = run("invert", tmp_path / "update.safetensors", *given[:2], "--shape", "3,40,20", *quick)
    assert wrong.exit_code == 2
    labels = run("labels", tmp_path / "update.safetensors", *given[:4], "--batch-size", 1, "--json")
    assert json.loads(labels.stdout)["labels"] == [1]


@pytest.mark.parametrize(
    "text", ["28", "1,28", "0,28", "a,b,c", "1,2,3,4", "1,28,-28", "4,28,28", ""]
)
def test_a_shape_that_is_none(text: str, grey16: Path, tmp_path: Path) -> None:
    quick = ["--attack", "ig", "--steps", 1, "--out", tmp_path / "out"]
    result = run("attack", grey16, *quick, "--shape", text)
    assert result.exit_code == 2
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert ("expected --shape" in line) != (text == "4,28,28"), line
