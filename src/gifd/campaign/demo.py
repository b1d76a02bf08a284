"""The private image of the demo: a public-domain portrait from scikit-image."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from skimage import data
from torch import Tensor

FACE = (160, 48, 288, 176)
"""The face in the portrait: left, upper, right, lower, in pixels; cropped as in LFW."""


def demo_face(size: int = 64) -> Float[Tensor, "3 H W"]:
    """The face of NASA's portrait of Eileen Collins, in [0, 1], (3, size, size).

    The portrait is in the public domain; scikit-image includes it as `data.astronaut()`.
    """
    portrait = Image.fromarray(data.astronaut())  # type: ignore[no-untyped-call]
    face = portrait.crop(FACE)
    small = face.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(small, dtype=np.float32) / 255.0  # (H, W, 3)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous()
