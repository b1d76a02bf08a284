"""Picture: the image of a file, of 8 bits or deeper, to be framed and made grey or coloured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image, ImageOps
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey: those of Pillow (ITU-R BT.601)."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image as its file holds it.

    Args:
        bands: one image of 8 bits (of mode 'L' or 'RGB'); or, of deeper files, one of floats in
            [0, 1] (of mode 'F') for each of 1 or 3 channels.
    """

    bands: tuple[Image.Image, ...]

    @classmethod
    def of(cls, pixels: Shaped[np.ndarray, "H W *C"]) -> Picture:
        """From floats in [0, 1], grey (H, W) or coloured (H, W, 3)."""
        layers = np.moveaxis(np.atleast_3d(pixels.astype(np.float32)), 2, 0)
        return cls(bands=tuple(Image.fromarray(np.ascontiguousarray(each)) for each in layers))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.bands[0].size

    @property
    def deep(self) -> bool:
        """Whether it has more than 8 bits a channel."""
        return self.bands[0].mode == "F"

    def grey(self) -> Picture:
        """One channel."""
        if not self.deep:
            return Picture(bands=(self.bands[0].convert("L"),))
        if len(self.bands) == 1:
            return self
        layers = np.stack([np.asarray(band) for band in self.bands], -1)
        return Picture.of(layers @ np.array(LUMA, dtype=np.float32))

    def coloured(self) -> Picture:
        """Three channels, equal ones if it is grey."""
        if not self.deep:
            return Picture(bands=(self.bands[0].convert("RGB"),))
        return self if len(self.bands) == 3 else Picture(bands=self.bands * 3)

    def fitted(self, height: int, width: int) -> Picture:
        """The largest part about the centre with these proportions, resized to them."""
        how = Image.Resampling.BICUBIC
        return Picture(
            bands=tuple(ImageOps.fit(b, (width, height), method=how) for b in self.bands)
        )

    def tensor(self) -> Float[Tensor, "C H W"]:
        """The pixels in [0, 1]."""
        white = np.float32(1 if self.deep else 255)
        pixels = np.dstack([np.asarray(band, dtype=np.float32) / white for band in self.bands])
        return torch.from_numpy(pixels.clip(0, 1)).permute(2, 0, 1).contiguous()

    def shown(self) -> Image.Image:
        """As RGB of 8 bits, to look at."""
        pixels = (self.coloured().tensor() * 255).round().byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())
