"""Every reader of files on nearly valid files: a value, or one short line."""

import dataclasses
import functools
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image, features
from safetensors.torch import save

from fuzzing import (
    EXAMPLES,
    edited,
    json_text,
    members,
    outcome,
    pickled,
    png,
    safetensors,
    zipped,
)
from gifd import weights
from gifd.campaign.record import ImageRecord, PhaseRecord, Record
from gifd.campaign.store import ANSWER, PRIVATE, RECORD, Store
from gifd.campaign.sweep import Results, number
from gifd.cli.frontier import _point
from gifd.images import read_image, read_images
from gifd.priors import read_checkpoint, read_remapper, write_checkpoint, write_remapper
from gifd.priors.dcgan import dcgan_stages
from gifd.priors.remapper import Remapper, RemapperNet
from gifd.report import write_report
from gifd.training import ImageSet, Recipe, state_path, train
from gifd.updates import Update
from gifd.weights import WheelFile, fetch
from golden.nvidia import as_pkl
from golden.tiny import as_hugging_face, named, small_stylegan2

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Reader:
    """What is read.

    Args:
        files: a strategy for the folder's files that change.
        read: reads the folder.
        beside: the folder's other files.
        few: how many examples there is time for in a test run.
    """

    files: Callable[[], Mapping[str, SearchStrategy[bytes]]]
    read: Callable[[Path], object]
    beside: Callable[[], Files] = dict
    few: int = 40


# -- pictures --------------------------------------------------------------------------------


def picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    rows, columns = np.mgrid[:20, :24] * 10
    colours = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    image = Image.fromarray(colours).convert(mode)
    if mode == "I;16":
        image = Image.fromarray((colours[..., 0].astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    if form in ("png", "jpeg", "webp", "avif", "tiff"):
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def one_picture(form: str, change: Callable[[bytes], SearchStrategy[bytes]], **how: Any) -> Reader:
    return Reader(
        files=lambda: {"picture": change(picture(form, **how))},
        read=lambda folder: read_image(folder / "picture", size=16),
    )


def album() -> dict[str, bytes]:
    return {f"class{i}/{i}.png": picture("png") for i in range(3)}


PICTURES = {
    "PNG": one_picture("png", png),
    "PNG of 16 bits": one_picture("png", png, mode="I;16"),
    "PNG with a palette": one_picture("png", png, mode="P"),
    "PNG's bytes": one_picture("png", edited),
    "JPEG": one_picture("jpeg", edited),
    "JPEG, progressive": one_picture("jpeg", edited, progressive=True),
    "GIF": one_picture("gif", edited, mode="P"),
    "BMP": one_picture("bmp", edited),
    "PPM": one_picture("ppm", edited),
    "TIFF": one_picture("tiff", edited, compression="tiff_lzw"),
}
if features.check("webp"):
    PICTURES["WebP"] = one_picture("webp", edited)
if features.check("avif"):
    PICTURES["AVIF"] = one_picture("avif", edited)
PICTURES["zip"] = Reader(
    files=lambda: {"album.zip": zipped(album(), {name: png(old) for name, old in album().items()})},
    read=lambda folder: list(read_images(folder / "album.zip", size=16)),
)

# -- weights ---------------------------------------------------------------------------------


def written(write: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return (Path(folder) / name).read_bytes()


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@functools.cache
def style() -> bytes:
    def write(folder: Path) -> None:
        (folder / "net.pt").write_bytes(saved(small_stylegan2(classes=4)))
        write_checkpoint(
            dataclasses.replace(
                read_checkpoint(folder / "net.pt"), options={"clamp": 4.0, "mapping_lr": 0.01}
            ),
            folder / "net.safetensors",
        )

    return written(write, "net.safetensors")


@functools.cache
def hugging_face() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        as_hugging_face(named("biggan truncation 1.0"), Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def rosinality() -> bytes:
    return saved({"g_ema": named("rosinality"), "latent_avg": torch.zeros(12), "args": [1]})


def dcgan() -> bytes:
    stages = dcgan_stages(latent=5, width=4, channels=3, doublings=2)
    chain = torch.nn.Sequential(*(module for stage in stages for module in stage))
    return saved({f"main.{name}": tensor for name, tensor in chain.state_dict().items()})


def torch_zip(seed: bytes) -> SearchStrategy[bytes]:
    """A file of `torch.save` with changes in its pickle or its zip."""
    held = members(seed)
    return zipped(held, {n: pickled(old) for n, old in held.items() if n.endswith(".pkl")}, 0)


def drawn(path: Path) -> object:
    return read_checkpoint(path).generator(name="foreign").sample(1, seed=0)


def checkpoint(name: str, strategy: Callable[[], SearchStrategy[bytes]], few: int = 40) -> Reader:
    return Reader(
        files=lambda: {name: strategy()}, read=lambda folder: drawn(folder / name), few=few
    )


def remapper() -> bytes:
    net = RemapperNet(4, width=4)
    whole = Remapper(net=net, classes=4, accuracy=0.5, name="r")
    return written(lambda folder: write_remapper(whole, folder / "r.safetensors"), "r.safetensors")


SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "scale": ()}


def update() -> bytes:
    tensors = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    return save(tensors, {"gifd.order": "\n".join(SHAPES), "gifd.restarts": "3"})


def read_update(folder: Path) -> object:
    found = Update.load(folder / "u.safetensors")
    return found.conform({name: torch.zeros(shape) for name, shape in SHAPES.items()})


CONTENT = b"four tensors, say"
WHEEL = WheelFile(
    name="fake",
    package="gifd-fake",
    version="1.0",
    member="gifd_fake/weights.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="MIT",
    size_bytes=len(CONTENT),
    note="A file for tests.",
)


def read_wheel(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIFD_CACHE", str(folder / "cache"))
        patch.setattr(weights, "_download", lambda file, into: folder / "w.whl")
        found = fetch(WHEEL).read_bytes()
    assert found == CONTENT
    return found


RECIPE = Recipe(channel_base=64, channel_max=4, latent=4, layers=1, batch=2)


def faces() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    return ImageSet(images=torch.randint(0, 256, (4, 3, 8, 8), generator=rng, dtype=torch.uint8))


@functools.cache
def state() -> bytes:
    out = Path("net.safetensors")
    return written(
        lambda folder: train(faces(), RECIPE, folder / out, images=2), state_path(out).name
    )


def resume(folder: Path) -> object:
    return train(faces(), RECIPE, folder / "net.safetensors", images=4, resume=True)


WEIGHTS = {
    "update": Reader(files=lambda: {"u.safetensors": safetensors(update())}, read=read_update),
    "our prior": checkpoint("net.safetensors", lambda: safetensors(style())),
    "StyleGAN2, torch": checkpoint("net.pt", lambda: torch_zip(saved(small_stylegan2()))),
    "StyleGAN2, rosinality": checkpoint("net.pt", lambda: torch_zip(rosinality())),
    "StyleGAN2, NVIDIA": checkpoint(
        "net.pkl",
        lambda: pickled(
            written(lambda f: as_pkl(named("stylegan2-ada"), f / "net.pkl"), "net.pkl")
        ),
    ),
    "DCGAN": checkpoint("net.pt", lambda: torch_zip(dcgan())),
    "BigGAN": Reader(
        files=lambda: {"pytorch_model.bin": torch_zip(hugging_face()["pytorch_model.bin"])},
        beside=hugging_face,
        read=drawn,
        few=25,
    ),
    "BigGAN's config": Reader(
        files=lambda: {"config.json": json_text(json.loads(hugging_face()["config.json"]))},
        beside=hugging_face,
        read=drawn,
        few=25,
    ),
    "remapper": Reader(
        files=lambda: {"r.safetensors": safetensors(remapper())},
        read=lambda folder: read_remapper(folder / "r.safetensors")(torch.zeros(1, 3, 16, 16)),
    ),
    "wheel": Reader(
        files=lambda: {"w.whl": zipped({"gifd_fake/weights.bin": CONTENT, "x": b"y"})},
        read=read_wheel,
    ),
    "training state": Reader(
        files=lambda: {"net.state.safetensors": safetensors(state())}, read=resume, few=15
    ),
}

# -- records ---------------------------------------------------------------------------------

PHASE = PhaseRecord(
    name="latent",
    distance=0.1,
    psnr=20.0,
    curve=[[0.3, None], [0.1]],
    restarts=[0, 1],
    best_restart=0,
    dropped=[1],
    evaluations=3,
    seconds=1.0,
)
RECORDED = Record(
    image="face.png",
    images=[ImageRecord(name="face.png", sha256="0" * 64, label=3, label_used=3, prior_label=None)],
    attack="gifd",
    preset="strongest",
    psnr=20.0,
    ssim=0.5,
    mse=0.01,
    distance=0.1,
    phase="latent",
    seconds=2.0,
    evaluations=6,
    seed=0,
    interrupted=False,
    dropped=[],
    label_source="inferred",
    label_hypotheses=1,
    defenses=["Noise(std=0.1)"],
    ledger={"labels": None, "attacker": "adaptive", "protocol": "FedSGD()"},
    victim={"name": "convnet", "mean": [0.5]},
    settings={"steps": 3},
    phases=[PHASE, PHASE.model_copy(update={"name": "feature 1"})],
    device="cpu",
    threads=1,
    peak_memory_bytes=1,
    versions={"gifd": "0"},
    created="2026-01-01T00:00:00+00:00",
)
ROW = {
    "key": "k",
    "kind": "attack",
    **dict.fromkeys(("defense", "strength", "attacker", "attack", "preset", "victim"), "x"),
    **dict.fromkeys(("psnr", "ssim", "stlpips", "accuracy", "length"), 0.5),
    "cosine": None,
    "epsilon": None,
}
SETTING = {
    **dict.fromkeys(("defense", "strength", "attacker", "attack", "preset", "victim"), "x"),
    **dict.fromkeys(("evaluations", "seed", "rounds"), 2),
    "images": ["a.png"],
}


def trial() -> dict[str, bytes]:
    names = (PRIVATE, ANSWER, "phase-01-latent.png", "phase-02-feature-1.png")
    return {
        **{f"trials/0001-face/{name}": picture("png") for name in names},
        f"trials/0001-face/{RECORD}": RECORDED.model_dump_json().encode(),
    }


def of_trial(name: str, strategy: Callable[[], SearchStrategy[bytes]]) -> Reader:
    return Reader(
        files=lambda: {f"trials/0001-face/{name}": strategy()},
        beside=trial,
        read=lambda folder: write_report(Store(folder)),
        few=25,
    )


def read_frontier(folder: Path) -> object:
    """The point of a row, as `gifd frontier` draws it."""
    results = Results(folder / "frontier.jsonl")
    if "k" not in results:
        return None
    point = _point([results["k"]], results["k"], **SETTING)
    return point.mean("psnr"), point.change(point, "psnr")


def read_average(folder: Path) -> object:
    """The numbers of a row that a benchmark averages."""
    results = Results(folder / "rows.jsonl")
    return "k" in results and [number(results["k"], name) for name in ("psnr", "ssim", "stlpips")]


RECORDS = {
    "record": of_trial(RECORD, lambda: json_text(RECORDED.model_dump())),
    "a record's picture": of_trial(PRIVATE, lambda: png(picture("png"))),
    "a benchmark's rows": Reader(
        files=lambda: {"rows.jsonl": json_text(ROW)}, read=read_average, few=60
    ),
    "a frontier's rows": Reader(
        files=lambda: {"frontier.jsonl": json_text(ROW)}, read=read_frontier, few=60
    ),
}

# -- all of them -----------------------------------------------------------------------------

READERS = {**PICTURES, **WEIGHTS, **RECORDS}


@functools.cache
def good(name: str) -> tuple[dict[str, SearchStrategy[bytes]], dict[str, bytes]]:
    reader = READERS[name]
    return dict(reader.files()), dict(reader.beside())


def fill(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_nearly_right_is_read_or_refused_in_one_line(name: str) -> None:
    reader = READERS[name]
    strategies, beside = good(name)

    @settings(
        max_examples=EXAMPLES or reader.few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries(strategies))
    def attempt(files: Files) -> None:
        with tempfile.TemporaryDirectory() as told:
            folder = Path(told)
            fill(folder, {**beside, **files})
            outcome(lambda: reader.read(folder), [folder])

    attempt()
