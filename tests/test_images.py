"""Image files, folders and zips: read as they are, or refused in one line."""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gifd.errors import InputError
from gifd.images import framing, grid, read_image, read_images, write_image


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
        (lambda path: path.mkdir(), "got a folder"),
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


def album(folder: Path) -> Path:
    """Five images in two folders, and files to be skipped."""
    for index, name in enumerate(["b/4.png", "a/1.PNG", "a/0.jpg", "b/3.png", "2.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (index * 50, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/1.png").write_bytes(b"")
    return folder


def zipped(folder: Path) -> Path:
    path = folder.parent / "album.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped])
def test_a_folder_and_its_zip_are_read_alike(tmp_path: Path, pack: Callable[[Path], Path]) -> None:
    source = pack(album(tmp_path / "album"))
    found = dict(read_images(source, size=16))
    assert list(found) == ["2.png", "a/0.jpg", "a/1.PNG", "b/3.png", "b/4.png"]
    assert torch.equal(found["b/3.png"], read_image(tmp_path / "album/b/3.png", size=16))
    assert [name for name, _ in read_images(source, limit=3)] == ["2.png", "a/1.PNG", "b/4.png"]
    assert [name for name, _ in read_images(source, match="[34].*")] == ["b/3.png", "b/4.png"]
    with pytest.raises(InputError, match=r"images that match 'x\*' in .*, got none"):
        list(read_images(source, match="x*"))


def test_one_bad_picture_is_named(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    cut_short(folder / "b/3.png")
    for source in (folder, zipped(folder)):
        with pytest.raises(InputError, match=r"3\.png") as error:
            list(read_images(source))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"PK, but no zip"])
def test_a_source_that_is_neither_folder_nor_zip(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "album.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="expected a folder or a zip of images") as error:
        list(read_images(path))
    assert "\n" not in str(error.value)


def test_a_grid_holds_every_picture_in_order(tmp_path: Path) -> None:
    images = torch.arange(5.0).div(5).reshape(5, 1, 1, 1).expand(5, 3, 8, 8)
    sheet = grid(images)
    assert sheet.shape == (3, 16, 24)
    assert sheet[0, 0, ::8].tolist() == pytest.approx([0.0, 0.2, 0.4])
    assert sheet[0, 8, ::8].tolist() == pytest.approx([0.6, 0.8, 1.0])
    write_image(sheet, tmp_path / "new" / "sheet.png")
    assert torch.allclose(read_image(tmp_path / "new" / "sheet.png", size=None), sheet)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected to write a PNG"):
        write_image(sheet, tmp_path / "file" / "sheet.png")


# -- depths --------------------------------------------------------------------------------

GREY = np.linspace(0, 1, 400).reshape(20, 20)


def tiff(values: np.ndarray, bits: int, photometric: int = 1) -> bytes:
    """A little-endian greyscale TIFF, packed as in the standard."""
    height, width = values.shape
    if bits == 16:
        data = values.astype("<u2").tobytes()
    else:
        digits = "".join(f"{value:0{bits}b}" for value in values.ravel())
        data = int(digits, 2).to_bytes(len(digits) // 8, "big")
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(data))]
    table = struct.pack("<H", len(tags))
    for tag, value in tags:
        table += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + b"\0\0\0\0"


def netpbm(values: np.ndarray, white: int, kind: str = "P5") -> bytes:
    height, width = values.shape[:2]
    return f"{kind} {width} {height} {white}\n".encode() + values.astype(">u2").tobytes()


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: greys (H, W) or colours (H, W, 3), which Pillow cannot write."""
    height, width, *channels = values.shape
    rows = values.astype(">u2").reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def levels(bits: int, white: float = 1.0) -> np.ndarray:
    found: np.ndarray = (GREY * white * (2**bits - 1)).round().astype(np.int64)
    return found


def colours(bits: int) -> np.ndarray:
    return np.stack([levels(bits), levels(bits)[::-1], levels(bits).T], -1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("16.png", deep_png(levels(16))),
        ("16.tiff", tiff(levels(16), 16)),
        ("12.tiff", tiff(levels(12), 12)),
        ("inverted.tiff", tiff(2**16 - 1 - levels(16), 16, photometric=0)),
        ("16.pgm", netpbm(levels(16), 2**16 - 1)),
        ("14.pgm", netpbm(levels(14), 2**14 - 1)),
        ("12.pgm", netpbm(levels(12), 2**12 - 1)),
        ("10.pgm", netpbm(levels(10), 2**10 - 1)),
    ],
)
def test_greys_of_every_depth_are_the_same_greys(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path / name, size=20)
    expected = torch.from_numpy(GREY).float().expand(3, 20, 20)
    assert torch.allclose(image, expected, atol=0.501 / 255 + 2**-11)  # 8 bits, and the file's 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("16.png", deep_png(colours(16))),
        ("16.ppm", netpbm(colours(16), 2**16 - 1, "P6")),
        ("14.ppm", netpbm(colours(14), 2**14 - 1, "P6")),
        ("12.ppm", netpbm(colours(12), 2**12 - 1, "P6")),
    ],
)
def test_colours_of_every_depth_are_the_same_colours(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    expected = torch.from_numpy(colours(16) / (2**16 - 1)).float().permute(2, 0, 1)
    assert torch.allclose(read_image(tmp_path / name, size=20), expected, atol=1.01 / 255)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grey.png", lambda bits: deep_png(levels(bits))),
        ("colours.png", lambda bits: deep_png(colours(bits))),
        ("grey.tiff", lambda bits: tiff(levels(bits), 16)),
        ("grey.pgm", lambda bits: netpbm(levels(bits), 2**16 - 1)),
        ("colours.ppm", lambda bits: netpbm(colours(bits), 2**16 - 1, "P6")),
    ],
)
def test_few_bits_in_a_file_of_sixteen_are_refused(
    tmp_path: Path, name: str, write: Callable[[int], bytes], bits: int
) -> None:
    (tmp_path / name).write_bytes(write(bits))
    with pytest.raises(InputError, match=r"16 bits a channel, .* rescale it to 16 bits") as error:
        read_image(tmp_path / name, size=20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("black.png", deep_png(levels(16) * 0)),
        ("dark.png", deep_png(levels(16, 0.3))),
        ("dark.pgm", netpbm(levels(12, 0.1), 2**12 - 1)),
        ("dark.tiff", tiff(levels(12, 0.1), 12)),
    ],
)
def test_dark_pictures_are_taken_where_the_file_says_so(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert float(read_image(tmp_path / name, size=20).max()) <= 0.31


def test_a_packed_depth_that_pillow_does_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "14.tiff").write_bytes(tiff(levels(14), 14))
    with pytest.raises(InputError, match="a format that Pillow does not read"):
        read_image(tmp_path / "14.tiff")


# -- framing -------------------------------------------------------------------------------


def test_what_reading_cropped_or_enlarged_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for height, width in ((64, 64), (80, 80), (90, 70), (20, 20), (20, 30)):
        ramp(height, width).save(tmp_path / f"{height}x{width}.png")
    names = [name for name, _ in read_images(tmp_path, size=64, told=told.append)]
    assert dict(zip(names, told, strict=True))["90x70.png"] == (70, 90)  # width and height
    assert framing(told, 64) == (
        "images: 2 of 5 cropped to the centre square, 2 of 5 enlarged to 64 x 64 pixels"
    )
    assert framing([(64, 64), (80, 80)], 64) is None
    assert framing([(70, 90)], 64) == "images: 1 of 1 cropped to the centre square"
    assert framing([(20, 20)], 64) == "images: 1 of 1 enlarged to 64 x 64 pixels"
