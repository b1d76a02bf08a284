"""Training: networks against the reference, closed forms of losses, interrupted runs."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from gifd.cli import app
from gifd.errors import InputError, WeightsError
from gifd.priors import read_checkpoint, stylegan2, write_checkpoint
from gifd.priors.generator import IMAGE
from gifd.training import ImageSet, Recipe, Trainer, image_set, read_image_set, state_path, train
from gifd.training.augment import Adapt, Augment
from gifd.training.discriminator import Discriminator
from gifd.training.losses import discriminator_loss, generator_loss, path_length, r1
from golden.formula import apart, digest, numbers
from golden.tiny import GOLDEN, named

TINY = Recipe(
    channel_base=64,
    channel_max=8,
    latent=6,
    layers=2,
    batch=4,
    path_length=2.0,
    augment=0.01,
    augment_speed=40.0,
    lr=0.01,
    seed=3,
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 64, side: int = 8, classes: int = 0) -> ImageSet:
    images = torch.randint(160, 256, (count, 3, side, side), generator=rng(), dtype=torch.uint8)
    if not classes:
        return ImageSet(images=images)
    labels = torch.arange(count) % classes
    return ImageSet(images=images, labels=labels, classes=tuple("abcdefgh"[:classes]))


# -- networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 5])
def test_the_discriminator_is_the_references(classes: int) -> None:
    reference = "discriminator conditional" if classes else "discriminator"
    golden = GOLDEN[reference]
    own = Discriminator([12, 8, 4], classes=classes)
    parts = {"b16.fromrgb": "from_rgb", "b4.conv": "conv", "b4.fc": "fc", "b4.out": "out"}
    parts |= {f"b{16 // 2**i}": f"blocks.{i}" for i in range(2)}
    renamed = {}
    for name, tensor in named(reference).items():
        if not name.endswith("resample_filter"):
            prefix = next((p for p in parts if name.startswith(f"{p}.")), "")
            renamed[parts.get(prefix, "") + name.removeprefix(prefix)] = tensor
    missing, unexpected = own.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(name.endswith(("filter", "w_avg")) for name in missing)
    images = numbers("images", (8, 3, 16, 16)).requires_grad_()
    labels = torch.tensor([1, 3, 0, 2, 4, 4, 1, 0]) if classes else None
    logits = own(images, labels)
    (slope,) = torch.autograd.grad(logits.square().sum(), images)
    assert apart(digest(logits), golden["images"]) < 1e-5
    assert apart(digest(slope), golden["gradients"][0]) < 1e-5


@pytest.mark.parametrize("classes", [0, 3])
def test_what_is_trained_is_what_is_cut(classes: int) -> None:
    trainer = Trainer(pictures(classes=classes), TINY)
    for _ in range(3):
        trainer.step()
    prior = trainer.checkpoint().generator(name="trained", latent="z", noise="const")
    labels = torch.arange(4) % 3 if classes else None
    state = prior.draw(4, rng(1), labels)
    network = trainer.average
    with torch.no_grad():
        w = network.mapping(state[IMAGE], labels)[:, None].expand(-1, network.layers, -1)
        noise = {f"noise{i}": m.expand(4, 1, -1, -1) for i, m in enumerate(network.noise_maps)}
        images = (network(w, noise) + 1) / 2
    assert torch.allclose(prior(state)[IMAGE], images, atol=2e-2)  # weights in half precision
    assert float((prior(state)[IMAGE] - images).abs().mean()) < 2e-3


@pytest.mark.parametrize(("side", "base", "blocks"), [(12, 6, 2), (20, 5, 3), (28, 7, 3)])
def test_sides_that_are_multiples_of_four_grow_from_their_base(
    side: int, base: int, blocks: int, tmp_path: Path
) -> None:
    images = torch.randint(0, 256, (8, 1, side, side), generator=rng(), dtype=torch.uint8)
    trainer = Trainer(ImageSet(images=images), TINY)
    assert len(trainer.channels) == blocks
    before = {name: tensor.clone() for name, tensor in trainer.generator.state_dict().items()}
    losses = trainer.step()
    assert np.isfinite([losses.generator, losses.discriminator]).all()
    after = trainer.generator.state_dict()
    assert not torch.equal(before[f"synthesis.b{base}.const"], after[f"synthesis.b{base}.const"])
    write_checkpoint(trainer.checkpoint(), tmp_path / "grey.safetensors")
    prior = read_checkpoint(tmp_path / "grey.safetensors").generator(name="grey", latent="z")
    assert (prior.image_shape, len(prior)) == ((1, side, side), blocks)
    state = prior.draw(2, rng(2))
    for cut in range(blocks + 1):
        assert torch.equal(prior[cut:](prior[:cut](state))[IMAGE], prior(state)[IMAGE])
    early = stylegan2(trainer.checkpoint().tensors, resolution=2 * base, latent="z")
    assert early.image_shape == (1, 2 * base, 2 * base)
    with pytest.raises(InputError, match=rf"a resolution of \[{base}, {2 * base}"):
        stylegan2(trainer.checkpoint().tensors, resolution=base + 1)


def test_a_grey_prior_is_trained_and_attacks_a_grey_victim(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 2**16, (28, 28)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    out = tmp_path / "digits.safetensors"
    small = ["--channel-base", "64", "--channel-max", "4", "--latent", "4", "--batch", "2"]
    small += ["--score", "0", "--device", "cpu"]
    trained = run("prior", "train", folder, "--grey", "--out", out, "--images", 4, *small)
    assert trained.exit_code == 0, trained.output
    assert "StyleGAN2, 28 px" in out.with_suffix(".md").read_text(encoding="utf-8")
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.mode == "L"
    victim = ["--victim", "lenet", "--shape", "1,28,28", "--restarts", 1, "--steps", 12, "--json"]
    where = ["--prior", out, "--out", tmp_path / "out"]
    result = run("attack", folder / "3.png", *victim, *where)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["settings"]["prior"] == "Generator('digits', 3 stages, 1 x 28 x 28)"
    assert record["psnr"] is not None
    colours = run("attack", folder / "3.png", *victim[:2], *where)
    assert colours.exit_code == 2
    assert "1 x 28 x 28" in colours.stderr


def test_a_constant_that_its_name_does_not_fit_is_refused() -> None:
    tensors = dict(Trainer(pictures(8), TINY).checkpoint().tensors)
    for name, const in (("b7", torch.zeros(8, 4, 4)), ("b9999", tensors["synthesis.b4.const"])):
        wrong = tensors | {f"synthesis.{name}.const": const}
        with pytest.raises(WeightsError, match="expected StyleGAN2 weights"):
            stylegan2(wrong)


# -- losses ------------------------------------------------------------------------------


def test_losses_of_known_logits() -> None:
    logits = torch.tensor([0.0, 2.0])
    soft = torch.log1p(logits.exp())
    assert torch.allclose(generator_loss(-logits), soft.mean())
    assert torch.allclose(discriminator_loss(-logits, logits), 2 * soft.mean())


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm() -> None:
    weight = torch.randn(3, 8, 8, generator=rng()).requires_grad_()
    images = torch.rand(5, 3, 8, 8, generator=rng(1)).requires_grad_()
    penalty = r1((images * weight).sum((1, 2, 3)), images)
    assert torch.allclose(penalty, weight.square().sum() / 2)
    (slope,) = torch.autograd.grad(penalty, weight)
    assert torch.allclose(slope, weight.detach())


def test_path_length_of_a_linear_generator() -> None:
    matrix = torch.randn(3 * 64, 6, generator=rng(), dtype=torch.float64)
    w = torch.randn(4096, 2, 6, generator=rng(1), dtype=torch.float64).requires_grad_()
    images = (w.sum(1) @ matrix.T).reshape(-1, 3, 8, 8)
    lengths = path_length(images, w, rng(2))
    # E |J^T y|^2 over normal y of variance 1 / 64 is |J|^2 / 64, the same for either layer
    expected = matrix.square().sum() / 64
    assert float(lengths.square().mean() / expected) == pytest.approx(1, abs=0.05)


# -- augmentation ------------------------------------------------------------------------


def test_augmentation_of_probability_zero_changes_nothing() -> None:
    images = torch.rand(4, 3, 16, 16, generator=rng())
    assert Augment()(images, 0.0, rng(1)) is images


@given(p=st.floats(0.01, 1.0), seed=st.integers(0, 100))
def test_augmentation_is_drawn_from_the_generator_and_can_be_learnt_through(
    p: float, seed: int
) -> None:
    images = torch.rand(4, 3, 8, 8, generator=rng()).requires_grad_()
    once, again = (Augment()(images, p, rng(seed)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == images.shape
    (slope,) = torch.autograd.grad(once.square().sum(), images)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("p", [0.02, 0.1])
def test_augmentation_leaves_the_share_of_images_that_it_should(p: float) -> None:
    images = torch.rand(1, 3, 8, 8, generator=rng()).expand(4000, -1, -1, -1)
    changed = Augment()(images, p, rng(1))
    kept = ((changed - images).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    # five places and four colours with p each; the draws of a mirror and of the luma flip do
    # nothing every second time, a quarter turn every fourth, two rotations together have p
    untouched = (1 - p / 2) ** 2 * (1 - p * 3 / 4) * (1 - p) ** 9
    assert float(kept) == pytest.approx(untouched, abs=0.03)


def test_augmentation_keeps_greys_grey_apart_from_their_level() -> None:
    grey = torch.full((64, 3, 8, 8), 0.25)
    changed = Augment()(grey, 1.0, rng())
    assert torch.allclose(changed[:, 0], changed[:, 1], atol=1e-5)
    assert torch.allclose(changed[:, 0], changed[:, 2], atol=1e-5)
    assert float(changed.std()) > 0.1


@given(p=st.floats(0, 1), r=st.floats(-1, 1), images=st.integers(1, 10**7))
def test_the_probability_follows_overfitting_within_its_bounds(
    p: float, r: float, images: int
) -> None:
    new = Adapt()(p, r, images)
    assert 0 <= new <= 1
    assert new >= p if r > 0.6 else True
    assert new <= p if r < 0.6 else True


# -- runs --------------------------------------------------------------------------------


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads({threads})
sys.path[:0] = {path}
from test_training import TINY, pictures
from gifd.training import train

def kill(now):
    if now.seen == 52:
        os.kill(os.getpid(), signal.SIGKILL)

train(pictures(classes=3), TINY, Path({out!r}), images=80, save_every=20, callback=kill)
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """64 images, 20 steps of 4; killed after 13, saved after 10."""
    data, whole, killed = (
        pictures(classes=3),
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
    )
    strengths: list[float] = []
    train(data, TINY, whole, images=80, callback=lambda now: strengths.append(now.p))
    code = KILLED.format(
        threads=torch.get_num_threads(), path=[str(Path(__file__).parent)], out=str(killed)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert not equal(load_file(killed), load_file(whole))
    trainer = train(data, TINY, killed, images=80, resume=True)
    assert trainer.seen == 80
    assert equal(load_file(killed), load_file(whole))
    assert equal(load_file(state_path(killed)), load_file(state_path(whole)))
    assert max(strengths) > 0  # images were augmented too


def test_minutes_and_interruptions_save_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"
    assert train(pictures(), TINY, out, images=80, minutes=0.0).seen == 4

    def interrupt(*logits: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)  # the generator has moved, the discriminator not yet
        return discriminator_loss(*logits)

    with monkeypatch.context() as patch:
        patch.setattr("gifd.training.trainer.discriminator_loss", interrupt)
        assert train(pictures(), TINY, out, images=80, resume=True).seen == 8
    resumed = train(pictures(), TINY, out, images=12, resume=True)
    straight = train(pictures(), TINY, tmp_path / "b.safetensors", images=12)
    assert equal(resumed.state(), straight.state())


def test_training_follows_its_images() -> None:
    """From plain red images it learns red, for any seed."""
    red = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    red[:, 0] = 255
    recipe = Recipe(channel_base=64, channel_max=8, latent=6, layers=2, batch=8, augment=0.0)
    trainer = Trainer(ImageSet(images=red), recipe)
    prior = trainer.checkpoint().generator(name="before", latent="z")
    target = red[:1].float() / 255
    before = (prior.sample(16, seed=0) - target).abs().mean()
    for _ in range(120):
        trainer.step()
    after = (trainer.checkpoint().generator(name="after", latent="z").sample(16, 0) - target).abs()
    assert float(after.mean()) < 0.5 * float(before)


def test_bfloat16_and_float32_take_about_the_same_step() -> None:
    steps = []
    for precision in ("float32", "bfloat16"):
        recipe = Recipe(channel_base=64, channel_max=8, latent=6, batch=4, precision=precision)
        losses = Trainer(pictures(), recipe).step()
        steps.append((losses.generator, losses.discriminator))
    assert steps[0] == pytest.approx(steps[1], abs=0.05)


PLAIN = dataclasses.replace(TINY, path_length=0.0, augment=0.0, mirror=False)


@pytest.mark.parametrize("gamma", [0.5, None])
def test_r1_is_scaled_by_how_rarely_it_is_taken(gamma: float | None) -> None:
    """Adam's first moment is the last gradient: in every 16th step that of 16 gamma R1."""
    trainer, without = (
        Trainer(pictures(), dataclasses.replace(PLAIN, gamma=weight)) for weight in (gamma, 0.0)
    )
    trainer.step()
    without.step()  # a gradient of zeros moves nothing: it stands before R1
    weights = list(without.discriminator.parameters())
    real, labels = trainer.data.batch(0, PLAIN.batch, PLAIN.seed)
    real.requires_grad_()
    penalty = r1(without.discriminator(real, labels), real)
    slopes = torch.autograd.grad(
        16 * (gamma or 2e-4 * 8**2 / 4) * penalty, weights, allow_unused=True
    )
    state = trainer.state()
    assert sum(slope is None for slope in slopes) == 1, "R1 does not hear the last bias"
    for index, slope in enumerate(slopes):
        if slope is not None:
            last, largest = state[f"adam.discriminator.{index}.exp_avg"], float(slope.abs().max())
            assert torch.allclose(last, slope, rtol=1e-3, atol=1e-5 * largest)


def test_regularisers_are_as_rare_as_they_are_weighted_for() -> None:
    trainer = Trainer(pictures(), dataclasses.replace(PLAIN, path_length=2.0))
    for step in range(1, 18):
        trainer.step()
        state = trainer.state()
        assert int(state["adam.discriminator.0.step"]) == step + -(-step // 16)
        assert int(state["adam.generator.0.step"]) == step + -(-step // 4)


def test_the_average_follows_the_weights_with_its_half_life() -> None:
    """Half of its weight is older than `ema` images, or than 1/20 of all in the beginning."""
    trainer = Trainer(pictures(), dataclasses.replace(PLAIN, ema=1.0))
    parameters = [name for name, _ in trainer.generator.named_parameters()]
    mean = {name: tensor.clone() for name, tensor in trainer.average.state_dict().items()}
    for step in range(1, 13):
        trainer.step()
        keep = 0.5 ** (4 / min(1.0, 4 * step / 20))
        now, found = trainer.generator.state_dict(), trainer.average.state_dict()
        for name in now:
            share = 1 - keep if name in parameters else 1.0
            mean[name] += share * (now[name] - mean[name])
            assert torch.allclose(found[name], mean[name], rtol=1e-4, atol=1e-6), name
    apart = max(float((now[n] - found[n]).abs().max()) for n in parameters)
    assert apart > 1e-4, "it is behind"


@pytest.mark.parametrize("mirror", [False, True])
def test_half_of_the_reals_are_mirrored_where_the_recipe_says_so(mirror: bool) -> None:
    trainer = Trainer(pictures(), dataclasses.replace(PLAIN, mirror=mirror))
    given: list[Tensor] = []
    trainer.discriminator.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    kept = flipped = 0
    for _ in range(16):
        given.clear()
        data, _ = trainer.data.batch(trainer.seen, PLAIN.batch, PLAIN.seed)
        trainer.step()
        real = given[1]  # after the generator's fakes, before the discriminator's
        kept += sum(torch.equal(a, b) for a, b in zip(real, data, strict=True))
        flipped += sum(torch.equal(a, b.flip(2)) for a, b in zip(real, data, strict=True))
    assert kept + flipped == 64
    assert 16 < flipped < 48 if mirror else flipped == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lr": 0.1}, "expected the recipe of the run .* lr=0.1 .it had 0.01."),
        (None, "expected the data of the run .* other images"),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, change: dict[str, float] | None, reason: str
) -> None:
    out = tmp_path / "a.safetensors"
    train(pictures(), TINY, out, images=4)
    fields = {**TINY.__dict__, **(change or {})}
    data = pictures() if change else pictures(classes=3)
    with pytest.raises(InputError, match=reason) as error:
        train(data, Recipe(**fields), out, images=8, resume=True)
    assert "\n" not in str(error.value)


def test_states_that_are_missing_there_already_or_damaged(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="found none"):
        train(pictures(), TINY, out, images=8, resume=True)
    train(pictures(), TINY, out, images=4)
    with pytest.raises(InputError, match="resume it, or delete"):
        train(pictures(), TINY, out, images=8)
    state_path(out).write_bytes(state_path(out).read_bytes()[:-10])
    with pytest.raises(WeightsError, match="cannot be read"):
        train(pictures(), TINY, out, images=8, resume=True)
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        train(pictures(), TINY, tmp_path / "a.pt", images=8)
    with pytest.raises(InputError, match="at least a batch of 4 images, got 2"):
        train(pictures(2), TINY, tmp_path / "c.safetensors", images=8)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected to write"):
        train(pictures(), TINY, tmp_path / "file" / "a.safetensors", images=8)


# -- data --------------------------------------------------------------------------------


def album(folder: Path, count: int = 6, side: int = 16) -> Path:
    for index in range(count):
        path = folder / f"{'cat' if index % 2 else 'dog'}" / f"{index}_class{10 - index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (40 * index, 0, 0)).save(path)
    return folder


def test_a_folder_becomes_an_image_set_with_the_labels_asked_for(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    plain = read_image_set(folder)
    assert plain.images.shape == (6, 3, 16, 16)
    assert plain.labels is None
    assert plain.images[:, 0, 0, 0].tolist() == [40, 120, 200, 0, 80, 160]
    named_after_folders = read_image_set(folder, labels="/")
    assert named_after_folders.classes == ("cat", "dog")
    assert named_after_folders.labels is not None
    assert named_after_folders.labels.tolist() == [0, 0, 0, 1, 1, 1]
    numbered = read_image_set(folder, labels="class([0-9]+)", size=8)
    assert numbered.classes == ("5", "6", "7", "8", "9", "10")  # numbers in their order
    assert numbered.images.shape == (6, 3, 8, 8)


@given(seen=st.integers(0, 1000), count=st.integers(1, 50), parts=st.integers(1, 4))
def test_batches_do_not_depend_on_how_they_are_cut(seen: int, count: int, parts: int) -> None:
    data = pictures(7, classes=3)
    whole, labels = data.batch(seen, count * parts, 1)
    cut = [data.batch(seen + i * count, count, 1) for i in range(parts)]
    assert torch.equal(whole, torch.cat([images for images, _ in cut]))
    assert labels is not None
    chunks = [chunk for _, chunk in cut if chunk is not None]
    assert labels.tolist() == torch.cat(chunks).tolist()


def test_every_pass_shows_every_image_once() -> None:
    data = ImageSet(
        images=torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8)
    )
    for epoch in range(3):
        images, _ = data.batch(5 * epoch, 5, 0)
        assert sorted(((images[:, 0, 0, 0] + 1) * 127.5).round().tolist()) == [0, 1, 2, 3, 4]


def test_any_dataset_will_do() -> None:
    images = torch.rand(6, 3, 8, 8, generator=rng())
    pairs = torch.utils.data.TensorDataset(images, torch.arange(6) % 2)
    data = image_set(pairs)
    assert torch.allclose(data.images / 255, images, atol=0.5 / 255)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1] * 3
    assert image_set([image.mul(255).byte() for image in images]).labels is None


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "got an empty one"),
        (["a"], "image tensors"),
        ([torch.rand(3, 8, 8) * 2], r"values in \[0, 1\]"),
        ([torch.rand(3, 8, 8), torch.rand(3, 16, 16)], "one size"),
        ([(torch.rand(3, 8, 8), 0), torch.rand(3, 8, 8)], "a label for each"),
        ([torch.rand(3, 18, 18)], "8, 12, 16"),
        ([torch.rand(3, 8, 16)], "square"),
        ([(torch.rand(3, 8, 8), -1)], "labels of 0"),
    ],
)
def test_datasets_that_will_not_do(items: list[object], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        image_set(items)
    assert "\n" not in str(error.value)


def corrupt(folder: Path) -> None:
    (folder / "cat" / "1_class9.png").write_bytes(b"\x89PNG but no more")


def mixed(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "cat" / "1_class9.png")


def empty(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "options", "reason"),
    [
        (corrupt, [], "1_class9.png"),
        (mixed, [], "expected images of one size .* 32 x 32 and 16 x 16"),
        (empty, [], "expected images in .*, got none"),
        (lambda folder: None, ["--labels", "age"], "expected a group"),
        (lambda folder: None, ["--labels", "age([0-9]+)"], "expected a class in every path"),
        (lambda folder: None, ["--labels", "("], "expected a regular expression"),
        (lambda folder: None, ["--size", "22"], "expected a size of 8, 12, 16"),
        (lambda folder: None, ["--lr", "0"], "lr above 0"),
        (lambda folder: None, ["--precision", "int8"], "precision float32 or bfloat16"),
        (lambda folder: None, ["--batch", "32"], "at least a batch"),
    ],
)
def test_bad_data_get_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], options: list[str], reason: str
) -> None:
    folder = album(tmp_path / "album")
    spoil(folder)
    out = str(tmp_path / "out.safetensors")
    arguments = ["prior", "train", str(folder), "--out", out, "--images", "4", "--batch", "4"]
    found = CliRunner().invoke(app, [*arguments, "--score", "0", *options])
    assert found.exit_code == 2, found.output
    assert found.stderr.strip().count("\n") == 0
    assert re.search(reason, found.stderr), found.stderr


def test_the_command_line_trains_resumes_and_writes_a_card(tmp_path: Path) -> None:
    folder, out = album(tmp_path / "album"), tmp_path / "new" / "pets.safetensors"
    arguments = ["prior", "train", str(folder), "--out", str(out), "--batch", "2", "--score", "0"]
    arguments += ["--channel-base", "64", "--channel-max", "8", "--latent", "6", "--labels", "/"]
    arguments += ["--licence", "CC0-1.0"]
    first = CliRunner().invoke(app, [*arguments, "--images", "4"])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, [*arguments, "--images", "8", "--resume"])
    assert second.exit_code == 0, second.output
    card = out.with_suffix(".md").read_text()
    for part in ("8 images, 4 steps of 2", "2 classes: cat, dog", "CC0-1.0", "album: 6 images"):
        assert part in card
    assert out.with_suffix(".png").exists()
    prior = read_checkpoint(out).generator(name="pets")
    assert prior.classes == 2
    assert prior.image_shape == (3, 16, 16)
    information = CliRunner().invoke(app, ["prior", "info", str(out)])
    assert information.exit_code == 0, information.output
