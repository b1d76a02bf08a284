"""Image files: read as they are, refused in one line, and folders and zips of them alike."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gifd.errors import InputError
from gifd.images import grid, read_image, read_images, write_image


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
    """Five pictures in two folders, and what must be passed over."""
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
