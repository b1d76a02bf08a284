"""The client: what it gives away can be replayed, and what cannot be is named."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gifd.errors import InputError, ModelError, UpdateError
from gifd.inversion import Cosine, Distance, LayerCosine, Squared
from gifd.model import Model
from gifd.observation import Ledger, Observation, Secret
from gifd.protocols import FedAvg, FedSGD, Protocol
from gifd.updates import Update
from gifd.victims import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Client,
    ConvNet,
    LeNet,
    ResNet18,
    check_replay,
    read_image,
)

LABELS = torch.tensor([2, 0])
Seeded = Callable[[int, Callable[[], nn.Module]], nn.Module]


@pytest.mark.parametrize("protocol", [FedSGD(), FedAvg(steps=2, lr=0.01, batch_size=1)])
@pytest.mark.parametrize(
    "make", [lambda: ResNet18(3), lambda: LeNet(3, size=8), lambda: ConvNet(3, width=4)]
)
def test_the_truth_replayed_has_no_distance(
    seeded: Seeded,
    pictures: Callable[..., Tensor],
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
    make: Callable[[], nn.Module],
    protocol: Protocol,
) -> None:
    module = seeded(3, make)
    images = pictures(0, batch=2)
    with untouched(module) if not isinstance(module, ResNet18) else torch.no_grad():
        client = Client(model=Model(module=module), protocol=protocol)
        observation, secret = client.step(images, LABELS)
    replayed = observation.replay(secret.images, secret.labels).detach()
    power = float(observation.update.norm()) ** 2
    scales: dict[Distance, float] = {Cosine(): 1, LayerCosine(norm=1.0): 1, Squared(): power}
    for distance, scale in scales.items():
        assert float(distance(replayed, observation.update)) == pytest.approx(0, abs=1e-5 * scale)
    other = observation.replay(1 - secret.images, secret.labels).detach()
    for distance, scale in scales.items():
        assert float(distance(other, observation.update)) > 1e-4 * scale


def test_the_server_gets_no_more_than_was_granted(
    victim: Model, pictures: Callable[..., Tensor]
) -> None:
    images = pictures(0, batch=2, side=16)
    bare, secret = Client(model=victim).step(images, LABELS)
    granted, _ = Client(model=victim, grant_labels=True).step(images, LABELS)
    assert bare.grants() == {
        "protocol": "FedSGD()",
        "image_shape": [3, 16, 16],
        "batch_size": 2,
        "labels": None,
    }
    assert granted.grants() == {**bare.grants(), "labels": [2, 0]}
    assert [field.name for field in fields(Observation)] == [
        "update",
        "model",
        "protocol",
        "ledger",
    ]
    assert torch.equal(secret.images, images)
    assert not any(tensor.requires_grad for tensor in bare.update.tensors)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def believed(truly: Model, belief: Model, protocol: Protocol, images: Tensor) -> Observation:
    """What a server sees of a client that computed otherwise than the server believes."""
    update = FedSGD()(truly, truly.parameters, truly.buffers, images, LABELS)
    ledger = Ledger(image_shape=(3, 16, 16), batch_size=2)
    return Observation(update=update, model=belief, protocol=protocol, ledger=ledger)


def test_the_mismatch_of_a_replay_is_named(victim: Model, pictures: Callable[..., Tensor]) -> None:
    images = pictures(0, batch=2, side=16)
    secret = Secret(images=images, labels=LABELS)
    module = victim.module
    summing = Model(module=module, mean=victim.mean, std=victim.std, loss=summed)
    other_units = Model(module=module, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    check_replay(believed(victim, victim, FedSGD(), images), secret)
    cases = {
        "the replay times 2: another loss reduction": (summing, victim, FedSGD()),
        "the replay times -10: .* sign": (victim, victim, FedAvg(steps=1, lr=0.1)),
        "worst at '.*': another loss, normalisation": (other_units, victim, FedSGD()),
    }
    for reason, (truly, belief, protocol) in cases.items():
        with pytest.raises(ModelError, match=reason) as error:
            check_replay(believed(truly, belief, protocol, images), secret)
        assert "\n" not in str(error.value)


def test_a_random_layer_is_named(pictures: Callable[..., Tensor]) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 3)).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(ModelError, match="two replays differ too: dropout"):
            Client(model=Model(module=module)).step(pictures(0, batch=2), LABELS)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (torch.rand(2, 3, 16, 16), torch.tensor([0, 4]), r"labels from 0 to 3 .* got \[0, 4\]"),
        (torch.rand(2, 3, 16, 16), torch.tensor([-1, 0]), "labels from 0 to 3"),
        (torch.rand(2, 3, 16, 16) + 1, LABELS, r"values in \[0, 1\]"),
        (torch.rand(2, 3, 16, 16) - 1, LABELS, r"values in \[0, 1\]"),
        (torch.full((2, 3, 16, 16), torch.nan), LABELS, r"values in \[0, 1\]"),
        (torch.rand(2, 3, 16, 16), torch.tensor([0]), "one label each"),
        (torch.rand(3, 16, 16), LABELS, r"images \(B, C, H, W\)"),
        (torch.rand(0, 3, 16, 16), LABELS[:0], r"images \(B, C, H, W\)"),
    ],
)
def test_a_batch_that_cannot_be_trained_on(
    victim: Model, images: Tensor, labels: Tensor, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as error:
        Client(model=victim).step(images, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), "model that takes images"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), r"logits \(B, classes\)"),
        (ConvNet(3, width=4).train(), "model that takes images"),
    ],
)
def test_a_model_that_does_not_fit_the_images(module: nn.Module, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as error:
        Client(model=Model(module=module)).step(torch.rand(1, 3, 8, 8), LABELS[:1])
    assert "\n" not in str(error.value)


def test_an_update_of_another_model_is_refused(victim: Model) -> None:
    ledger = Ledger(image_shape=(3, 16, 16), batch_size=1)
    for parameters, reason in [
        ({"fc.weight": torch.zeros(1)}, "missing"),
        ({n: p * torch.nan for n, p in victim.parameters.items()}, "not finite"),
    ]:
        with pytest.raises(UpdateError, match=reason):
            Observation(update=Update(parameters), model=victim, protocol=FedSGD(), ledger=ledger)


def test_an_observation_is_of_one_client(victim: Model) -> None:
    update = Update(dict(victim.parameters))
    ledger = Ledger(image_shape=(3, 16, 16), batch_size=1)
    stacked = Update.stack([update, update])
    with pytest.raises(InputError, match="one client's update"):
        Observation(update=stacked, model=victim, protocol=FedSGD(), ledger=ledger)


@pytest.mark.parametrize(
    ("shape", "batch", "labels"),
    [((3, 0, 4), 1, None), ((3, 4, 4), 0, None), ((3, 4, 4), 2, torch.tensor([1]))],
)
def test_a_ledger_that_contradicts_itself(
    shape: tuple[int, int, int], batch: int, labels: Tensor | None
) -> None:
    with pytest.raises(InputError, match="expected"):
        Ledger(image_shape=shape, batch_size=batch, labels=labels)


# -- image files -----------------------------------------------------------------------


def ramp(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    colours = np.stack([rows, columns, rows + columns], -1) * 255 / (height + width)
    return Image.fromarray(colours.astype(np.uint8))


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path: Path) -> None:
    ramp(20, 20).save(tmp_path / "i.png")
    image = read_image(tmp_path / "i.png", size=20)
    expected = torch.from_numpy(np.asarray(ramp(20, 20)).copy()).permute(2, 0, 1) / 255
    assert image.dtype == torch.float32
    assert torch.allclose(image, expected)
    assert torch.equal(read_image(str(tmp_path / "i.png"), size=20), image)


@pytest.mark.parametrize(("height", "width"), [(20, 48), (48, 20), (100, 100)])
def test_the_centre_square_is_resized(tmp_path: Path, height: int, width: int) -> None:
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    ramp(height, width).save(tmp_path / "i.png")
    ramp(height, width).crop((left, top, left + side, top + side)).save(tmp_path / "square.png")
    image = read_image(tmp_path / "i.png", size=16)
    assert image.shape == (3, 16, 16)
    assert torch.allclose(image, read_image(tmp_path / "square.png", size=16), atol=1 / 255)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("i.tiff" if mode == "CMYK" else "i.png")
    red = Image.new("RGB", (20, 20), (255, 0, 0)).convert("L" if mode in "LA1" else "RGB")
    red.convert(mode).save(path)
    image = read_image(path, size=16)
    assert image.shape == (3, 16, 16)
    if mode in ("RGBA", "P", "CMYK"):
        assert torch.allclose(image.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=0.02)
    else:
        assert torch.equal(image[0], image[2])


def test_sixteen_bits_of_grey_are_the_same_greys(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 400).round().reshape(20, 20)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save(tmp_path / "16.png")
    assert torch.equal(
        read_image(tmp_path / "16.png", size=20), read_image(tmp_path / "8.png", size=20)
    )


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    ramp(20, 20).save(tmp_path / "i.png")
    ramp(20, 20).save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "i.png", size=20)
    assert torch.equal(read_image(tmp_path / "turned.png", size=20), upright.flip(1, 2))


def cut_short(path: Path) -> None:
    ramp(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "found none"),
        (lambda path: path.mkdir(), "got something else"),
        (lambda path: path.write_bytes(b""), "got something else"),
        (lambda path: path.write_text("a letter, say"), "got something else"),
        (cut_short, "readable image"),
        (lambda path: ramp(15, 40).save(path), "at least 16 x 16 pixels .* got 40 x 15"),
        (lambda path: Image.new("I", (20, 20)).save(path.with_suffix(".tiff")), "mode I"),
        (lambda path: Image.new("F", (20, 20)).save(path.with_suffix(".tiff")), "mode F"),
    ],
)
def test_a_file_that_is_no_usable_image(
    tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "i.png"
    write(path)
    if reason.startswith("mode"):
        path = path.with_suffix(".tiff")
    with pytest.raises(InputError, match=reason) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
