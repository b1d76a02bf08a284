"""Strip: a row of pictures per private batch, the original and each attack's reconstruction."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gifd.campaign.record import Record
from gifd.campaign.store import Stored
from gifd.errors import InputError, one_line
from gifd.formats import read_raster

_TILE, _GAP, _CAPTION = 192, 12, 44
_INK, _PAPER, _FAINT = (24, 26, 32), (255, 255, 255), (110, 116, 128)
_BLANK = (236, 238, 242)


_OF_THE_SETTING = ("attacker", "protocol", "labels", "batch_norm")


def defended_by(record: Record) -> str:
    """A trial's defences and its attacker's knowledge; empty without defences."""
    attacker = record.ledger.get("attacker")
    return f"{', '.join(record.defenses)}, {attacker}" if record.defenses else ""


def group_by_batch(trials: Iterable[Stored]) -> list[list[Stored]]:
    """Group trials by private batch, defences, grants and victim, in order of first appearance."""
    groups: dict[str, list[Stored]] = {}
    for trial in trials:
        record = trial.record
        images = [(image.name, image.sha256) for image in record.images]
        granted = {name: record.ledger.get(name) for name in _OF_THE_SETTING}
        key = repr((images, record.defenses, granted, record.victim))
        groups.setdefault(key, []).append(trial)
    return list(groups.values())


def decibel(value: float | None) -> str:
    """A PSNR as text; None in a record means equal images."""
    return "exact" if value is None else f"{value:.1f} dB"


def draw_strip(trials: Iterable[Stored], path: Path) -> None:
    """Write a PNG with a row for each private batch.

    Args:
        trials: of one or more private batches.
        path: of the PNG.
    """
    rows = group_by_batch(trials)
    columns = 1 + max(len(row) for row in rows)
    width = _GAP + columns * (_TILE + _GAP)
    height = _GAP + len(rows) * (_TILE + _CAPTION + _GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(13)
    huge = ImageFont.load_default(40)
    for line, row in enumerate(rows):
        top = _GAP + line * (_TILE + _CAPTION + _GAP)
        first = row[0].record
        name = defended_by(first) or first.image
        known = (row[0].private, "private", name)
        tiles = [known if first.truth else (None, "private: unknown", first.image)]
        for trial in row:
            record = trial.record
            score = decibel(record.psnr) if record.truth else f"distance {record.distance:.2g}"
            if record.ssim is not None:
                score += f"   SSIM {record.ssim:.2f}"
            tiles.append((trial.answer, f"{record.attack} ({record.preset})", score))
        for column, (file, title, note) in enumerate(tiles):
            left = _GAP + column * (_TILE + _GAP)
            if file is None:
                pen.rectangle((left, top, left + _TILE, top + _TILE), fill=_BLANK)
                pen.text((left + _TILE // 2 - 6, top + _TILE // 2 - 20), "?", _FAINT, font=huge)
            else:
                picture = read_raster(BytesIO(trial_picture(file)), f"'{file}'")
                sheet.paste(_fitted(picture.shown()), (left, top))
            pen.text((left, top + _TILE + 5), title, fill=_INK, font=large)
            pen.text((left, top + _TILE + 24), note[:26], fill=_FAINT, font=small)
    sheet.save(path)


def trial_picture(file: Path) -> bytes:
    """The bytes of a trial's picture.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"expected a trial's picture at '{file}', got: {one_line(error)}"
        ) from None


def _fitted(picture: Image.Image) -> Image.Image:
    """Scaled to a tile, up by whole pixels or down by averaging; the aspect ratio is kept."""
    scale = _TILE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
