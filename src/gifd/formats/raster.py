"""Raster: pictures that Pillow decodes, at the full depth of their file or not at all.

Pillow has no colours of 16 bits: it keeps the upper byte of each number. The lower one is decoded
from the same file a second time, with the order of the bytes swapped.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from gifd.errors import InputError, one_line
from gifd.formats.picture import Picture

FULL = 16
"""Bits of files that often contain fewer: a sensor's 10, 12 or 14 bits stored as 16."""
_SIXTEEN = re.compile(r"(RGB[AX]?);16([BLN])")
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def read_raster(file: io.BufferedReader | io.BytesIO, name: str) -> Picture:
    """The picture of a file that Pillow reads, turned as its EXIF data say.

    Raises:
        InputError: not an image, a damaged one, one with more pixels than Pillow considers safe,
            of an unknown depth, or of a depth that Pillow does not decode in full.
    """
    try:
        with _opened(file) as opened:
            depth = Depth.of(opened)
            if depth.bits == 8:
                return Picture(bands=(ImageOps.exif_transpose(opened).convert("RGB"),))
            return Picture.of(depth.greys(opened) if depth.grey else depth.colours(opened, file))
    except UnidentifiedImageError:
        raise InputError(
            f"expected an image (PNG, JPEG, ...) at {name}, got something else, "
            "or a format that Pillow does not read"
        ) from None
    except Exception as error:  # a damaged picture raises nearly every type
        raise InputError(f"expected a readable image at {name}, got: {one_line(error)}") from None


@contextmanager
def _opened(file: io.BufferedReader | io.BytesIO) -> Iterator[ImageFile]:
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. about damaged EXIF data
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as opened:
            yield opened


@final
@dataclass(frozen=True, kw_only=True)
class Depth:
    """How a file stores its pixels.

    Args:
        bits: bits per channel, as stated in the file.
        white: the integer for white.
        grey: whether Pillow decodes greys in full; deep colours need two passes.
        inverted: whether 0 is white.
    """

    bits: int = 8
    white: int = 255
    grey: bool = False
    inverted: bool = False

    @classmethod
    def of(cls, opened: ImageFile) -> Depth:
        """The depth of an image that is open and not yet loaded.

        Raises:
            ValueError: the file does not state its white.
        """
        mode, grey = opened.mode, opened.mode.startswith("I;16")
        if isinstance(opened, TiffImageFile):
            bits = max(8, *opened.tag_v2.get(BITSPERSAMPLE, (8,)))
            inverted = grey and opened.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
            found = cls(bits=bits, white=2**bits - 1, grey=grey, inverted=inverted)
        elif opened.format == "PPM" and mode in ("L", "RGB", "I"):
            white = _white_of(opened)
            if white < 256:
                return cls()
            if mode == "RGB":
                return cls(bits=white.bit_length(), white=white)
            return cls(bits=white.bit_length(), white=2**16 - 1, grey=True)  # Pillow rescales greys
        elif grey or any(";16" in str(tile.args) for tile in opened.tile):
            found = cls(bits=FULL, white=2**16 - 1, grey=grey)
        else:
            found = cls()
        if mode[0] in "IF" and not grey:
            raise ValueError(f"pixels of mode {mode}: convert it to 8 or 16 bits a channel")
        return found

    def greys(self, opened: ImageFile) -> np.ndarray:
        """(H, W) in [0, 1].

        Raises:
            ValueError: it has apparently fewer bits than the file states.
        """
        shades = np.asarray(ImageOps.exif_transpose(opened), dtype=np.float64) / self.white
        self._believe(float(shades.max()))
        return 1 - shades if self.inverted else shades

    def colours(self, opened: ImageFile, file: io.BufferedReader | io.BytesIO) -> np.ndarray:
        """(H, W, 3) in [0, 1], from the upper and the lower bytes.

        Raises:
            ValueError: Pillow decodes the upper bytes only; or as in `greys`.
        """
        colours = 256 * self._bytes(opened, swapped=False)
        with _opened(file) as again:
            colours += self._bytes(again, swapped=True)
        colours /= self.white
        self._believe(float(colours.max()))
        return colours

    def _bytes(self, opened: ImageFile, *, swapped: bool) -> np.ndarray:
        tiles = []
        for tile in opened.tile:
            first, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            if opened.format == "PPM" and tile.codec_name == "ppm":  # it would rescale to 8 bits
                tile, first, rest = tile._replace(codec_name="raw"), "RGB;16B", [0, 1]
            known = _SIXTEEN.fullmatch(str(first))
            if known is None:
                raise ValueError(
                    f"colours of {self.bits} bits a channel, stored as {one_line(first, 20)}, of "
                    "which Pillow would keep 8: save it as an RGB PNG or TIFF of 16 bits, or "
                    "convert it to 8"
                )
            raw = f"{known[1]};16{_SWAPPED[known[2]] if swapped else known[2]}"
            args = (raw, *rest) if rest or isinstance(tile.args, tuple) else raw
            tiles.append(tile._replace(args=args))
        opened.tile = tiles
        turned = ImageOps.exif_transpose(opened).convert("RGB")
        return np.asarray(turned, dtype=np.float64)

    def _believe(self, share: float) -> None:
        """Refuse 16-bit images whose upper two bits are empty: they would be almost black."""
        if self.bits == FULL and 0 < share <= 1 / 4:
            raise ValueError(
                f"16 bits a channel, the brightest {share:.1%} of white: it has fewer bits than it "
                "states or is nearly black, rescale it to 16 bits or convert it to 8"
            )


def _white_of(opened: ImageFile) -> int:
    """The largest value of a PPM."""
    for tile in opened.tile:
        if tile.codec_name.startswith("ppm") and isinstance(tile.args, tuple):
            return int(tile.args[1])
    return 2**16 - 1 if opened.mode == "I" else 255
