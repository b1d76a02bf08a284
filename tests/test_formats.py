"""Formats: each written by the library that usually writes it, and read without loss."""

from __future__ import annotations

import datetime
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from gifd.errors import InputError
from gifd.formats.picture import LUMA
from gifd.images import read_image, read_images

Array = np.ndarray
SIDES = (20, 24)
EXACT = 2.0**-22
"""A few roundings of float32; 16 bits are steps of 2^-16."""


def greys(bits: int = 16) -> Array:
    """(H, W) integers from 0 to white, whose lower bytes are as irregular as their upper ones."""
    found = np.random.default_rng(0).integers(0, 2**bits, SIDES)
    found[0, :2] = 0, 2**bits - 1
    return found.astype(np.uint8 if bits == 8 else np.uint16)


def colours(bits: int = 16) -> Array:
    """(H, W, 3), likewise."""
    return np.stack([greys(bits), greys(bits)[::-1], greys(bits)[:, ::-1]], -1)


def by_pillow(values: Array, path: Path) -> None:
    Image.fromarray(values).save(path)


def by_tifffile(values: Array, path: Path, **options: object) -> None:
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    tifffile.imwrite(path, values, **({"photometric": photometric} | options))  # type: ignore[arg-type]


def as_png(values: Array, path: Path) -> None:
    """By the standard: Pillow writes no colours of 16 bits."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    lines = [rows[0].tobytes()]  # the others as differences to the line above: filter 2
    for above, row in zip(rows.view(np.uint8), rows[1:].view(np.uint8), strict=False):
        lines.append((row - above).tobytes())
    data = b"".join(bytes([2 if i else 0]) + line for i, line in enumerate(lines))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )


def as_ppm(values: Array, path: Path, white: int) -> None:
    height, width, _ = values.shape
    path.write_bytes(f"P6 {width} {height} {white}\n".encode() + values.astype(">u2").tobytes())


def by_numpy(values: Array, path: Path) -> None:
    np.save(path, values)


def by_pydicom(values: Array, path: Path, bits: int = 16, **tags: object) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.ContentDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * values.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    for tag, value in tags.items():
        setattr(data, tag, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)


FULL, TWELVE = 2.0**16 - 1, 2.0**12 - 1
Written = tuple[str, Callable[[Path], object], Array]
ROWS: dict[str, Written] = {
    "8-bit greys, Pillow": ("p.png", lambda p: by_pillow(greys(8), p), greys(8) / 255),
    "16-bit greys, Pillow": ("p.png", lambda p: by_pillow(greys(), p), greys() / FULL),
    "16-bit colours in PNG": ("p.png", lambda p: as_png(colours(), p), colours() / FULL),
    "16-bit colours with alpha in PNG": (
        "p.png",
        lambda p: as_png(np.concatenate([colours(), colours()[..., :1]], -1), p),
        colours() / FULL,
    ),
    "16-bit greys, tifffile": ("p.tif", lambda p: by_tifffile(greys(), p), greys() / FULL),
    "16-bit colours, tifffile": ("p.tif", lambda p: by_tifffile(colours(), p), colours() / FULL),
    "16-bit colours, big-endian": (
        "p.tiff",
        lambda p: by_tifffile(colours(), p, byteorder=">"),
        colours() / FULL,
    ),
    "16-bit colours, compressed": (
        "p.tiff",
        lambda p: by_tifffile(colours(), p, compression="zlib", predictor=True),
        colours() / FULL,
    ),
    "16-bit colours, in tiles": (
        "p.tiff",
        lambda p: by_tifffile(colours(), p, tile=(16, 16)),
        colours() / FULL,
    ),
    "16-bit colours in PPM": ("p.ppm", lambda p: as_ppm(colours(), p, 65535), colours() / FULL),
    "12-bit colours in PPM": (
        "p.ppm",
        lambda p: as_ppm(colours(12), p, 4095),
        colours(12) / TWELVE,
    ),
    "bytes, NumPy": ("p.npy", lambda p: by_numpy(greys(8), p), greys(8) / 255),
    "16 bits, NumPy": ("p.npy", lambda p: by_numpy(greys(), p), greys() / FULL),
    "signed 16 bits, NumPy": (
        "p.npy",
        lambda p: by_numpy((greys().astype(np.int32) - 2**15).astype(np.int16), p),
        greys() / FULL,
    ),
    "channels last, NumPy": ("p.npy", lambda p: by_numpy(colours(), p), colours() / FULL),
    "channels first, NumPy": (
        "p.npy",
        lambda p: by_numpy(np.moveaxis(colours(), 2, 0), p),
        colours() / FULL,
    ),
    "one channel, NumPy": ("p.npy", lambda p: by_numpy(greys()[None], p), greys() / FULL),
    "floats, NumPy": ("p.npy", lambda p: by_numpy(colours() / FULL, p), colours() / FULL),
    "bits, NumPy": ("p.npy", lambda p: by_numpy(greys() > 9000, p), (greys() > 9000) * 1.0),
    "12-bit greys, pydicom": (
        "p.dcm",
        lambda p: by_pydicom(greys(12), p, 12),
        greys(12) / TWELVE,
    ),
    "MONOCHROME1, pydicom": (
        "p.dcm",
        lambda p: by_pydicom(greys(12), p, 12, PhotometricInterpretation="MONOCHROME1"),
        1 - greys(12) / TWELVE,
    ),
    "signed and rescaled, pydicom": (
        "p.dcm",
        lambda p: by_pydicom(
            (greys(12).astype(np.int32) - 2048).astype(np.int16),
            p,
            12,
            RescaleSlope=2,
            RescaleIntercept=-100,
        ),
        greys(12) / TWELVE,
    ),
    "a window, pydicom": (  # the standard's example of a linear one
        "p.dcm",
        lambda p: by_pydicom(
            greys(12),
            p,
            12,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            WindowCenter=40,
            WindowWidth=400,
        ),
        ((greys(12) - 1024.0 - 39.5) / 399 + 0.5).clip(0, 1),
    ),
    "a window of black on white, pydicom": (
        "p.dcm",
        lambda p: by_pydicom(
            greys(12),
            p,
            12,
            PhotometricInterpretation="MONOCHROME1",
            WindowCenter=[2048, 100],
            WindowWidth=[4096, 10],
            VOILUTFunction="LINEAR_EXACT",
        ),
        1 - greys(12) / 4096.0,
    ),
    "colours, pydicom": ("p.dcm", lambda p: by_pydicom(colours(8), p, 8), colours(8) / 255),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_a_library_writes_is_read_in_full(row: str, tmp_path: Path) -> None:
    name, write, expected = ROWS[row]
    write(tmp_path / name)
    wanted = torch.from_numpy(np.atleast_3d(expected)).permute(2, 0, 1)
    image = read_image(tmp_path / name, size=None)
    assert image.dtype == torch.float32
    assert image.shape == (3, *SIDES)
    assert float((image.double() - wanted).abs().max()) < EXACT
    luma = torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1)
    grey = (wanted.expand(3, -1, -1) * luma).sum(0, keepdim=True)
    eight = "8-bit" in row  # Pillow's greys of 8 bits are whole numbers
    found = read_image(tmp_path / name, size=None, channels=1)
    assert found.shape == (1, *SIDES)
    assert float((found.double() - grey).abs().max()) < (0.51 / 255 if eight else 4 * EXACT)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / name, f"folder/{name}")
    ((inside, packed),) = read_images(tmp_path / "all.zip", size=None)
    assert inside == f"folder/{name}"
    assert torch.equal(packed, image)


def test_deep_pictures_are_resized_like_those_of_8_bits(tmp_path: Path) -> None:
    y, x = np.mgrid[0:60, 0:90]
    smooth = 0.5 + 0.4 * np.sin(x / 9) * np.cos(y / 7)
    by_pillow((smooth * 255).round().astype(np.uint8), tmp_path / "8.png")
    by_pillow((smooth * FULL).round().astype(np.uint16), tmp_path / "16.png")
    np.save(tmp_path / "floats.npy", smooth.astype(np.float32))
    for size in (16, (24, 40)):
        eight, sixteen, floats = (
            read_image(tmp_path / name, size=size, channels=1)
            for name in ("8.png", "16.png", "floats.npy")
        )
        assert torch.allclose(sixteen, eight, atol=1.6 / 255)  # it rounds twice
        assert torch.allclose(sixteen, floats, atol=2**-16)
        assert len(set(sixteen.flatten().tolist())) > len(set(eight.flatten().tolist()))


def test_overshoots_of_resizing_stay_in_range(tmp_path: Path) -> None:
    np.save(tmp_path / "edge.npy", np.repeat([[0.0, 1.0]], 20, axis=0).repeat(20, axis=1))
    image = read_image(tmp_path / "edge.npy", size=(48, 90))
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)


def planar(path: Path) -> None:
    by_tifffile(np.moveaxis(colours(), 2, 0), path, planarconfig="separate", photometric="rgb")


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": print}] * 400, dtype=object).reshape(20, 20), allow_pickle=True)


def longer(path: Path) -> None:
    """A header that promises a terabyte."""
    header = io.BytesIO()
    told = {"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, told)
    path.write_bytes(header.getvalue() + b"\0" * 800)


def without_preamble(path: Path) -> None:
    by_pydicom(greys(), path)
    path.write_bytes(path.read_bytes()[132:])


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "planes of 16 bits": ("p.tif", planar, "16 bits a channel, stored as .* keep 8"),
    "greys with alpha": (
        "p.png",
        lambda p: as_png(colours()[..., :2], p),
        "16 bits a channel, stored as LA;16B",
    ),
    "floats in TIFF": (
        "p.tif",
        lambda p: by_tifffile((greys() / FULL).astype(np.float32), p),
        "mode F",
    ),
    "floats above 1": ("p.npy", lambda p: np.save(p, greys() * 1.0), r"floats in \[0, 1\]"),
    "not a number": ("p.npy", lambda p: np.save(p, np.full(SIDES, np.nan)), "got nan to nan"),
    "bytes in int64": ("p.npy", lambda p: np.save(p, greys(8).astype(np.int64)), "fill the range"),
    "12 bits in 16": ("p.npy", lambda p: np.save(p, greys(12)), "divide by the value of white"),
    "complex numbers": ("p.npy", lambda p: np.save(p, greys() * 1j), "integers or floats"),
    "a vector": ("p.npy", lambda p: np.save(p, greys().ravel()), r"got an array of shape \(480,\)"),
    "five channels": ("p.npy", lambda p: np.save(p, np.zeros((20, 20, 5))), "C = 1 or 3"),
    "nothing": ("p.npy", lambda p: np.save(p, np.zeros((0, 20))), "an empty array"),
    "objects": ("p.npy", pickled, "an array at .*, got: .*"),
    "more than there is": ("p.npy", longer, "cut short"),
    "no array": ("p.npy", lambda p: p.write_bytes(b"PK"), "expected an array"),
    "frames": ("p.dcm", lambda p: by_pydicom(greys(), p, NumberOfFrames=2), "one frame at .* 2"),
    "a palette": (
        "p.dcm",
        lambda p: by_pydicom(greys(), p, PhotometricInterpretation="PALETTE COLOR"),
        "got PALETTE COLOR",
    ),
    "a table": (
        "p.dcm",
        lambda p: by_pydicom(greys(), p, VOILUTSequence=[Dataset()]),
        r"a lookup table \(VOILUTSequence\)",
    ),
    "no DICOM": ("p.dcm", lambda p: p.write_text("a letter"), "expected a DICOM image"),
    "no preamble": ("p.dcm", without_preamble, "expected a DICOM image"),
    "cut short": ("p.dcm", lambda p: by_pydicom(greys()[:9], p, Rows=20), "expected a DICOM image"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_would_lose_or_invent_bits_is_one_line(row: str, tmp_path: Path) -> None:
    name, write, reason = REFUSED[row]
    write(tmp_path / name)
    with pytest.raises(InputError, match=reason) as error:
        read_image(tmp_path / name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_without_pydicom_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_pydicom(greys(), tmp_path / "p.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"pip install 'gifd\[medical\]'") as error:
        read_image(tmp_path / "p.dcm")
    assert "p.dcm" in str(error.value)
