"""Depths: images of more than 8 bits per channel, converted to 8 by the depth of their file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

FULL = 16
"""Bits of files that often contain fewer: a sensor's 10, 12 or 14 bits stored as 16."""


@final
@dataclass(frozen=True, kw_only=True)
class Depth:
    """How a file stores its pixels.

    Args:
        bits: bits per channel, as stated in the file.
        white: Pillow's integer value for white; None if Pillow converts to 8 bits.
        inverted: whether 0 is white.
    """

    bits: int = 8
    white: int | None = None
    inverted: bool = False

    @classmethod
    def of(cls, opened: Image.Image) -> Depth:
        """The depth of an image that is open and not yet loaded."""
        mode = opened.mode
        coded = [tile.args for tile in getattr(opened, "tile", ())]
        if isinstance(opened, TiffImageFile):
            bits = max(opened.tag_v2.get(BITSPERSAMPLE, (8,)))
            white = 2**bits - 1 if mode.startswith("I;16") else None
            inverted = opened.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
            return cls(bits=bits, white=white, inverted=inverted)
        if opened.format == "PPM" and mode in ("L", "RGB", "I"):  # Pillow rescales these itself
            largest = [args[1] for args in coded if isinstance(args, tuple) and len(args) > 1]
            bits = largest[0].bit_length() if largest else FULL if mode == "I" else 8
            return cls(bits=bits, white=2**16 - 1 if mode == "I" else None)
        if mode.startswith("I;16"):
            return cls(bits=FULL, white=2**16 - 1)
        deep = opened.format == "PNG" and any(";16" in str(args) for args in coded)
        return cls(bits=FULL if deep else 8)

    def rgb(self, picture: Image.Image) -> Image.Image:
        """Three channels of 8 bits; Pillow's own conversion clips deep greys at 255.

        Raises:
            ValueError: the file does not state its white, or apparently a wrong one.
        """
        if self.white is not None:
            values = np.asarray(picture).astype(np.float64)
            self._believe(float(values.max()) / self.white)
            shades = values * 255 / self.white
            shades = 255 - shades if self.inverted else shades
            return Image.fromarray(shades.round().astype(np.uint8)).convert("RGB")
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"pixels of mode {picture.mode}: convert it to 8 or 16 bits a channel")
        if self.bits == FULL:  # Pillow kept the upper 8 bits
            colours = picture.convert("RGB") if picture.mode == "RGBA" else picture
            self._believe(float(np.asarray(colours).max()) / 255)
        return picture.convert("RGB")

    def _believe(self, share: float) -> None:
        """Refuse 16-bit images whose upper two bits are empty: they would be almost black."""
        if self.bits == FULL and 0 < share <= 64 / 255:
            raise ValueError(
                f"16 bits a channel, the brightest {share:.1%} of white: it has fewer bits than it "
                "states or is nearly black, rescale it to 16 bits or convert it to 8"
            )
