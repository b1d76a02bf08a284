"""Malicious files: invalid values in valid form, and sizes that would exhaust the memory."""

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fuzzing import outcome
from gifd import images
from gifd.campaign.store import RECORD, Store
from gifd.errors import LONGEST, GifdError, InputError, UpdateError, WeightsError, one_line
from gifd.images import read_image, read_images
from gifd.priors import Generator, Layers, read_checkpoint, read_remapper, stylegan2
from gifd.priors.dcgan import dcgan
from gifd.priors.remapper import RemapperNet
from gifd.tensor_files import read_metadata, read_tensors
from gifd.updates import Update
from golden.nvidia import Pickled, as_pkl, nvidia_modules
from golden.tiny import as_hugging_face, named, small_stylegan2
from test_fuzz import RECORDED, resume, state


def refusal(read: Callable[[], object]) -> str:
    """The error's line, within the fuzzer's limits of time and memory."""
    error = outcome(read, [])
    assert error is not None
    return str(error)


# -- weights that are no numbers, options that make no sense ----------------------------------


def poisoned(tensors: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    """The same with one number of one of them replaced."""
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    other = tensors[name].clone()
    other.view(-1)[1] = value
    return {**tensors, name: other}


def as_safetensors(tensors: dict[str, Tensor], folder: Path, options: str = "{}") -> Path:
    metadata = {"format": "gifd prior", "architecture": "stylegan2", "options": options}
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(own, folder / "net.safetensors", metadata)
    return folder / "net.safetensors"


def as_torch(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "net.pt")
    return folder / "net.pt"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("tensors", "write"),
    [
        (small_stylegan2(), as_safetensors),
        (small_stylegan2(), as_torch),
        (named("rosinality"), as_torch),
        (named("stylegan2-ada"), lambda tensors, folder: as_pkl(tensors, folder / "net.pkl")),
        (named("biggan truncation 1.0"), as_hugging_face),
    ],
    ids=["ours", "torch", "rosinality", "NVIDIA", "Hugging Face"],
)
def test_weights_that_are_not_finite_are_refused(
    tensors: dict[str, Tensor],
    write: Callable[[dict[str, Tensor], Path], Path],
    value: float,
    tmp_path: Path,
) -> None:
    read_checkpoint(write(tensors, tmp_path))
    with pytest.raises(WeightsError, match="expected finite weights") as error:
        read_checkpoint(write(poisoned(tensors, value), tmp_path))
    assert "1 values of" in str(error.value)


@pytest.mark.parametrize("tensor", [torch.zeros(0, 3), torch.ones(2, dtype=torch.complex64)])
def test_weights_that_no_network_has_are_refused(tensor: Tensor, tmp_path: Path) -> None:
    tensors = {**small_stylegan2(), "mapping.fc0.bias": tensor}
    with pytest.raises(WeightsError, match=r"expected finite weights, got 'mapping\.fc0\.bias'"):
        read_checkpoint(as_torch(tensors, tmp_path))


@pytest.mark.parametrize(
    "extra",
    [{"bias_gain": bad} for bad in (-0.01, 0, math.nan, math.inf, "0.01", True, None, [0.01])]
    + [{"conv_clamp": bad} for bad in (-256, 0, math.nan, math.inf, "256", True, [1])],
)
def test_a_pickles_options_that_make_no_sense_are_refused(
    extra: dict[str, Any], tmp_path: Path
) -> None:
    path = as_pkl(named("stylegan2-ada"), tmp_path / "net.pkl", **extra)
    with pytest.raises(WeightsError, match=r"expected (mapping_lr|clamp) to be"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "options",
    [
        '{"clamp": NaN}',
        '{"clamp": Infinity}',
        '{"clamp": -1}',
        '{"clamp": "1"}',
        '{"mapping_lr": 0}',
        '{"mapping_lr": 1e400}',
        '{"mapping_lr": 1' + "0" * 400 + "}",
        '{"mapping_lr": null}',
        '{"eps": 1}',
        "[" * 100_000,
        '["clamp"]',
        "no JSON",
        "1",
    ],
)
def test_our_own_options_that_make_no_sense_are_refused(options: str, tmp_path: Path) -> None:
    path = as_safetensors(small_stylegan2(), tmp_path, options)
    assert "expected" in refusal(lambda: read_checkpoint(path))
    read_checkpoint(as_safetensors(small_stylegan2(), tmp_path, '{"clamp": 256, "mapping_lr": 1}'))


@pytest.mark.parametrize(
    "change",
    [
        {"eps": math.nan},
        {"eps": -1e-4},
        {"eps": "1e-4"},
        {"eps": [1]},
        {"layers": [["no", 16, 16]] * 6},
        {"layers": [[1, 16, 16]] * 6},
        {"layers": 3},
        {"layers": [[]]},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = as_hugging_face(named("biggan truncation 1.0"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    refusal(lambda: read_checkpoint(folder).generator(name="x"))


@pytest.mark.parametrize("accuracy", ["nan", "-0.1", "1.5", "inf", "high", ""])
def test_a_remappers_accuracy_is_a_share(accuracy: str, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    weights = RemapperNet(3, width=4).state_dict()
    save_file(weights, path, {"format": "gifd remapper", "accuracy": accuracy})
    with pytest.raises(WeightsError):
        read_remapper(path)
    save_file(poisoned(weights, math.nan), path, {"format": "gifd remapper", "accuracy": "0.5"})
    with pytest.raises(WeightsError, match="expected finite weights"):
        read_remapper(path)


def test_a_generator_whose_images_are_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="finite images"):
        Generator([Layers(torch.nn.Threshold(math.inf, math.nan))], latent=(3, 16, 16))


def test_a_record_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0001-x"
    folder.mkdir(parents=True)
    for name in ("distance", "psnr", "seconds"):
        content = json.dumps({**RECORDED.model_dump(), name: math.inf})
        (folder / RECORD).write_text(content)
        with pytest.raises(InputError, match=f"expected a record of gifd .*{name}"):
            list(Store(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p", torch.tensor(math.nan)),
        ("p", torch.tensor(1.5)),
        ("seen", torch.tensor(-2)),
        ("seen", torch.ones(2)),
        ("adam.generator.0.exp_avg", torch.ones(1)),
        ("adam.generator.0.step", torch.ones(3)),
        ("adam.generator.99.step", torch.tensor(1.0)),
        ("adam.generator.x.step", torch.tensor(1.0)),
        ("adam.generator.0.other", torch.ones(1)),
        ("rng", torch.ones(3)),
        ("average.mapping.fc0.bias", torch.full((4,), math.inf)),
    ],
)
def test_a_training_state_that_makes_no_sense_is_refused(
    name: str, value: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "net.state.safetensors"
    path.write_bytes(state())
    tensors, metadata = read_tensors(path), read_metadata(path)
    save_file({**tensors, name: value}, path, metadata)
    with pytest.raises(WeightsError):
        resume(tmp_path)


# -- sizes and shapes that would fill a memory -------------------------------------------------


def packed(content: bytes, method: int) -> bytes:
    """A file of `torch.save` with its parts compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def test_a_torch_file_that_unpacks_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "a.pt")
    path = tmp_path / "net.pt"
    path.write_bytes(packed((tmp_path / "a.pt").read_bytes(), zipfile.ZIP_DEFLATED))
    assert "torch.save packs none" in refusal(lambda: read_tensors(path))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(1, 1).expand(2**20, 2**20),
        torch.sparse_coo_tensor(
            torch.zeros(1, 1).long(), torch.ones(1), (2**40,), check_invariants=True
        ),
        torch.empty(2**40, device="meta"),
    ],
    ids=["stride", "strides", "sparse", "meta"],
)
def test_a_tensor_larger_than_its_file_is_refused(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "net.pt")
    said = refusal(lambda: read_tensors(tmp_path / "net.pt"))
    assert "expected plain tensors" in said or "cannot be read as tensors" in said


def test_dicts_in_many_places_are_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(4):
        content = {str(i): content for i in range(500)}
    torch.save(content, tmp_path / "net.pt")
    assert "names: expected a state dict" in refusal(lambda: read_tensors(tmp_path / "net.pt"))


def test_networks_in_many_places_or_inside_themselves_are_refused(tmp_path: Path) -> None:
    inner = Pickled(named("stylegan2-ada"), "Generator", {"bias_gain": 0.01})
    for _ in range(30):
        outer = Pickled({}, "Generator", {})
        outer.meta["state"]["_modules"] = {
            **inner.meta["state"]["_modules"],
            "a": inner,
            "b": inner,
        }
        inner = outer
    inner.meta["state"]["_modules"]["c"] = inner
    path = tmp_path / "net.pkl"
    with nvidia_modules():
        path.write_bytes(pickle.dumps({"G_ema": inner}))
    refusal(lambda: read_checkpoint(path))


def test_a_pickle_cannot_change_what_it_may_call(tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    state = pickle.dumps((None, {"__defaults__": (1,)}), protocol=2)[2:-1]
    path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + state + b"b.")
    assert "a state for a function" in refusal(lambda: read_checkpoint(path))


def test_a_pickle_cannot_ask_for_room(tmp_path: Path) -> None:
    """`pickle` allocates twice as many objects as the largest memo index."""
    path = tmp_path / "net.pkl"
    for place in (2**27, 2**31, 2**32 - 1):
        path.write_bytes(b"\x80\x02}r" + place.to_bytes(4, "little") + b".")
        assert f"an object at place {place:,}" in refusal(lambda: read_checkpoint(path))


def test_sizes_that_do_not_belong_together_build_no_network(tmp_path: Path) -> None:
    wide = {f"synthesis.b{4 * 2**i}.conv1.weight": torch.zeros(200_000, 1) for i in range(5)}
    tensors = {**small_stylegan2(), **wide}
    assert "larger than themselves" in refusal(lambda: stylegan2(tensors))
    deep = {f"main.{3 * i}.weight": torch.zeros(1, 1, 4, 4) for i in range(20)}
    assert "expected DCGAN weights" in refusal(lambda: dcgan(deep))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("lie", [False, True])
def test_a_picture_is_unpacked_no_further_than_it_says(
    method: int, lie: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "LARGEST", 2_000_000)
    path = tmp_path / "album.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", bytes(3_000_000))
    content = bytearray(path.read_bytes())
    if lie:
        at = content.rfind(b"PK\x01\x02") + 24
        content[at : at + 4] = (100).to_bytes(4, "little")
        path.write_bytes(content)
    assert "expected" in refusal(lambda: list(read_images(path, size=16)))


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n20000 20000\n255\n")
    assert "readable image" in refusal(lambda: read_image(tmp_path / "a.ppm", size=16))


# -- what is no file, and what names may hold -------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Reading a pipe would wait for a writer forever."""
    for name in ("a.png", "a.pt", "a.pkl", "a.safetensors", "a.zip"):
        os.mkfifo(tmp_path / name)
    assert "found none" in refusal(lambda: read_image(tmp_path / "a.png"))
    assert "expected a folder or a zip" in refusal(lambda: list(read_images(tmp_path / "a.zip")))
    assert "found none" in refusal(lambda: list(read_images(tmp_path)))
    for name in ("a.pt", "a.pkl", "a.safetensors"):
        assert "found none" in refusal(lambda name=name: read_checkpoint(tmp_path / name))  # type: ignore[misc]


def test_links_that_lead_nowhere_or_to_themselves_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    assert "a.png" in refusal(lambda: list(read_images(tmp_path)))
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").symlink_to("nowhere")
    assert "b.png" in refusal(lambda: list(read_images(tmp_path)))


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("\x1b[31m\r\n" + "x" * 5000 + ".png", b"")
    said = refusal(lambda: list(read_images(tmp_path / "a.zip")))
    assert "\\x1b[31m" in said
    assert "\x1b" not in said


def test_what_others_say_is_one_short_line(tmp_path: Path) -> None:
    assert one_line("a\n b\t\x00\ud800c") == "a b \\x00\\ud800c"
    assert one_line(ValueError()) == "ValueError"
    long = one_line("start " + "x" * 5064 + " end")
    assert len(long) == 160
    assert long.startswith("start ")
    assert long.endswith(" end")
    error = GifdError("start\n" + "x" * 5064 + "\nend")
    assert len(str(error)) == LONGEST
    assert "\n" not in str(error)
    path = tmp_path / "u.safetensors"
    header = json.dumps({f"tensor{i}" * 20: {"dtype": "X"} for i in range(50)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UpdateError) as told:
        Update.load(path)
    assert len(str(told.value)) < 350
