"""Wrong calls of the command line: exit code 2 and one line, never a traceback."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gifd.cli import app
from gifd.updates import Update
from golden.tiny import small_stylegan2

LONG = "n" * 300
ENDLESS = "99999999999999999999999"


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the calls: images, priors, an update, and unreadable entries."""
    here = tmp_path_factory.mktemp("odd")
    for i in range(6):
        path = here / f"album/class{i % 2}/class{i % 2}-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(path)
    Image.new("RGB", (32, 32)).save(here / "p.png")
    torch.save(small_stylegan2(resolution=32), here / "style.pt")
    torch.save(small_stylegan2(4, resolution=32), here / "classes.pt")
    Update({"a": torch.zeros(3)}).save(here / "u.safetensors")
    (here / "file").write_text("no folder")
    (here / "loop").symlink_to("loop")
    (here / "links").mkdir()
    (here / "links/class0.png").symlink_to("class0.png")
    before = Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


ATTACK = "attack p.png --attack ig --victim convnet --steps 1 --restarts 1 --size 32 --out o"
GIFD = "attack p.png --attack gifd --victim convnet --steps 8 --restarts 1 --size 32 --out o"
LABELS = "labels u.safetensors --batch-size 1 --victim convnet --size 32"
FRONTIER = (
    "frontier album --data album --victim convnet --attack ig --evaluations 1 --rounds 1 --size 32 "
    "--data-size 16 --limit 1 --grid clip:norm=1 --attacker adaptive --batch-size 2 --clients 2"
)
SCORE = "prior score style.pt --images album --steps 8 --samples 2"
REMAPPER = "prior remapper classes.pt --out r.safetensors --steps 1"
TRAIN = "prior train album --out t.safetensors --size 8 --images 2 --batch 2 --score 0"
TINY = "--channel-max 4 --latent 4"
PATHS = [LONG, "n/" * 3000, "a\0b", "file/x", "loop", "/dev/null"]


def told(call: list[str]) -> str:
    """The one line of a refused call."""
    result = CliRunner().invoke(app, call)
    assert result.exception is None or isinstance(result.exception, SystemExit), call
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    if "Usage: " in result.stderr:  # Typer's own, where an option's number is out of range
        return result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("note:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert len(lines[0]) <= 620
    return lines[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "call",
    [
        "attack {} --victim convnet",
        f"{GIFD} --prior {{}}",
        "labels {} --batch-size 1 --victim convnet",
        f"{LABELS} --estimator own-images --own {{}}",
        FRONTIER.replace("frontier album", "frontier {}"),
        FRONTIER.replace("--data album", "--data {}"),
        SCORE.replace("--images album", "--images {}"),
        SCORE.replace("style.pt", "{}"),
        f"{REMAPPER} --data {{}}",
        TRAIN.replace("train album", "train {}"),
        "prior info {}",
        "prior convert {} c.safetensors",
    ],
)
def test_paths_that_cannot_be_read(call: str, path: str) -> None:
    told([word.format(path) for word in call.split()])


@pytest.mark.parametrize("path", [LONG, "a\0b", "file/x", "loop/x"])
@pytest.mark.parametrize(
    "call",
    [
        "prior convert style.pt {}.safetensors",
        f"{TRAIN} {TINY} --out {{}}.safetensors",
        "prior sample style.pt --count 1 --out {}.png",
        f"{ATTACK} --out {{}}",
    ],
)
def test_paths_that_cannot_be_written(call: str, path: str) -> None:
    told([word.format(path) for word in call.split()])


def test_a_name_that_leaves_no_room_for_another_is_one_line() -> None:
    """A file is first written next to its target, under a longer name."""
    said = told(["prior", "convert", "style.pt", "n" * 245 + ".safetensors"])
    assert "expected to write" in said


@pytest.mark.parametrize("album", ["links", "/proc/1"])
@pytest.mark.parametrize(
    "call", [FRONTIER.replace("frontier album", "frontier {}"), TRAIN.replace("album", "{}")]
)
def test_folders_with_entries_that_cannot_be_read(call: str, album: str) -> None:
    if not Path(album).exists():
        pytest.skip("there is no such folder here")
    assert "expected" in told([word.format(album) for word in call.split()])


@pytest.mark.parametrize("seed", ["-1", ENDLESS, str(2**32), "nan"])
@pytest.mark.parametrize(
    "call", [ATTACK, FRONTIER, SCORE, REMAPPER, TRAIN, "prior sample style.pt", "demo --out o"]
)
def test_seeds_that_no_generator_takes(call: str, seed: str) -> None:
    assert "--seed" in told([*call.split(), "--seed", seed])


@pytest.mark.parametrize(
    "device",
    ["meta", "cuda:99", "cpu:-1", "xla", "vulkan", "hpu", "mkldnn", "", "cpu\0", "CPU", "n" * 5000],
)
def test_devices_that_compute_nothing(device: str) -> None:
    assert "expected a usable device" in told(["demo", "--out", "o", "--device", device])


@pytest.mark.parametrize("device", ["meta", "cuda:99"])
@pytest.mark.parametrize("call", [ATTACK, FRONTIER, f"{TRAIN} {TINY}"])
def test_devices_of_every_command(call: str, device: str) -> None:
    assert "expected a usable device" in told([*call.split(), "--device", device])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (f"{ATTACK} --victim-seed {ENDLESS}", "--victim-seed"),
        (f"{ATTACK} --victim-seed -1", "--victim-seed"),
        (f"{LABELS} --victim-seed {ENDLESS}", "--victim-seed"),
        (f"{ATTACK} --label {ENDLESS}", "expected --label as a class"),
        (f"{ATTACK} --label -1", "expected --label as a class"),
        (f"{ATTACK} --classes {ENDLESS}", "expected at least 2 classes"),
        (f"{ATTACK} --size {ENDLESS}", "at most 4096"),
        (f"{LABELS} --size {ENDLESS}", "at most 4096"),
        (f"{FRONTIER} --size {ENDLESS}", "at most 4096"),
        (f"{FRONTIER} --data-size {2**40}", "expected a size"),
        (f"{TRAIN} --size {2**40}", "expected a size"),
        (f"{TRAIN} --latent {ENDLESS}", "a recipe with latent"),
        (f"{TRAIN} --channel-max {ENDLESS}", "a recipe with channel_max"),
        (f"{TRAIN} --lr nan", "a recipe with lr"),
        (f"prior info style.pt --option area={ENDLESS}", "a size to average"),
        ("prior info style.pt --option area=64", "a size to average"),
        (f"{ATTACK} --victim .:x", "an importable victim"),
        (f"{ATTACK} --victim n\0:x", "an importable victim"),
        (f"{ATTACK} --labels (p)?.png", "a class number"),
        (f"{ATTACK} --labels (({'(' * 200}", "a regular expression"),
        ("prior remapper classes.pt --out r.pt --steps 1", "ends in .safetensors"),
    ],
)
def test_numbers_and_names_that_make_no_sense(call: str, says: str) -> None:
    assert says in " ".join(told(call.split(" ")).split())


def test_a_name_that_looks_like_markup_is_printed_as_it_is(folder: Path) -> None:
    name = "[red]x[" + "bold].png"
    (folder / name).write_bytes((folder / "p.png").read_bytes())
    out = CliRunner().invoke(app, ["prior", "sample", "style.pt", "--count", "1", "--out", name])
    assert out.exit_code == 0
    assert out.stdout.strip() == name
    call = ["attack", name, *ATTACK.split()[2:-1], "[" + "/bold]o"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert name in done.stderr
    assert "[/bold]o" in done.stderr
