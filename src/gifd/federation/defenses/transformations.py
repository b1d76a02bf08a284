"""The 50 image transformations of ATS, differentiable and on tensors.

Source: Gao et al., Privacy-Preserving Collaborative Learning with Automatic Transformation
Search, CVPR 2021, whose list and magnitudes are those of AutoAugment (Cubuk et al., CVPR 2019).

Differs from the official code, which uses Pillow on 8 bits: interpolation is bilinear, not bicubic
or nearest, and gaps after a rotation are black. Step functions (posterize, equalize) have the
gradient of the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Transformation = Callable[[Float[Tensor, "C H W"], float], Float[Tensor, "C H W"]]

_LIST = (
    "invert7 contrast6 rotate2 translateX9 sharpness1 sharpness3 shearY2 translateY2 autocontrast5 "
    "equalize2 shearY5 posterize5 color3 brightness5 sharpness9 brightness9 equalize5 equalize1 "
    "contrast7 sharpness5 color5 translateX5 equalize7 autocontrast8 translateY3 sharpness6 "
    "brightness6 color8 solarize0 invert0 equalize0 autocontrast0 equalize8 equalize4 color5 "
    "equalize5 autocontrast4 solarize4 brightness3 color0 solarize1 autocontrast0 translateY3 "
    "translateY3 autocontrast1 solarize1 equalize5 invert0 translateY3 autocontrast1"
)
TRANSFORMATIONS: tuple[tuple[str, int], ...] = tuple(
    (word[:-1], int(word[-1])) for word in _LIST.split()
)
"""Name and magnitude, 0 to 9, of each, by its number."""

_RANGES = {
    "shearX": (0.0, 0.3),
    "shearY": (0.0, 0.3),
    "translateX": (0.0, 150 / 331),
    "translateY": (0.0, 150 / 331),
    "rotate": (0.0, 30.0),
    "color": (0.0, 0.5),
    "contrast": (0.0, 0.5),
    "sharpness": (0.0, 0.5),
    "brightness": (0.0, 0.5),
    "posterize": (8.0, 4.0),
    "solarize": (256.0, 0.0),
}
SIGNED = frozenset(_RANGES) - {"rotate", "posterize", "solarize"}
"""Transformations with a direction; both directions are equally likely."""


def transform(
    image: Float[Tensor, "C H W"], number: int, sign: float = 1.0
) -> Float[Tensor, "C H W"]:
    """The image in [0, 1] after transformation `number`; `sign` is its direction, 1 or -1."""
    name, step = TRANSFORMATIONS[number]
    low, high = _RANGES.get(name, (0.0, 0.0))
    magnitude = low + (high - low) * step / 9
    if name in SIGNED:
        magnitude *= sign
    return _BY_NAME[name](image, magnitude).clamp(0, 1)


def _affine(image: Tensor, matrix: list[list[float]]) -> Tensor:
    theta = image.new_tensor(matrix)[None]
    where = F.affine_grid(theta, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], where, align_corners=False)[0]


def _rotate(image: Tensor, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = image.shape[-2:]
    return _affine(image, [[c, -s * height / width, 0.0], [s * width / height, c, 0.0]])


def _grey(image: Tensor) -> Tensor:
    """(1, H, W), with Pillow's weights of the colours."""
    if len(image) != 3:
        return image.mean(0, keepdim=True)
    return (image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)


def _smooth(image: Tensor) -> Tensor:
    kernel = image.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inner = F.conv2d(image[:, None], kernel[None, None])[:, 0]
    framed = image.clone()
    framed[:, 1:-1, 1:-1] = inner
    return framed


def _passed(image: Tensor, changed: Tensor) -> Tensor:
    """The changed values with the gradient of the image."""
    return image + (changed - image).detach()


def _posterize(image: Tensor, bits: float) -> Tensor:
    step = 2.0 ** (8 - round(bits))
    return _passed(image, (image * 255 / step).floor() * step / 255)


def _autocontrast(image: Tensor, _: float) -> Tensor:
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return torch.where(high > low, (image - low) / (high - low).clamp_min(1e-6), image)


def _equalize(image: Tensor, _: float) -> Tensor:
    """Each channel equalised by ranks, with Pillow's integer steps."""
    flat = (image.detach() * 255).round().flatten(1)  # (C, H W)
    smaller = torch.searchsorted(flat.sort(1).values, flat)
    step = torch.div(smaller.amax(1, keepdim=True), 255, rounding_mode="floor")
    half = torch.div(step, 2, rounding_mode="floor")
    levels = torch.div(smaller + half, step.clamp_min(1), rounding_mode="floor").clamp_max(255)
    return _passed(image, torch.where(step > 0, levels, flat).to(image).view_as(image) / 255)


_BY_NAME: dict[str, Transformation] = {
    "shearX": lambda x, m: _affine(x, [[1.0, m, 0.0], [0.0, 1.0, 0.0]]),
    "shearY": lambda x, m: _affine(x, [[1.0, 0.0, 0.0], [m, 1.0, 0.0]]),
    "translateX": lambda x, m: _affine(x, [[1.0, 0.0, 2 * m], [0.0, 1.0, 0.0]]),
    "translateY": lambda x, m: _affine(x, [[1.0, 0.0, 0.0], [0.0, 1.0, 2 * m]]),
    "rotate": _rotate,
    "color": lambda x, m: torch.lerp(_grey(x).expand_as(x), x, 1 + m),
    "contrast": lambda x, m: torch.lerp(_grey(x).mean().expand_as(x), x, 1 + m),
    "brightness": lambda x, m: x * (1 + m),
    "sharpness": lambda x, m: torch.lerp(_smooth(x), x, 1 + m),
    "posterize": _posterize,
    "solarize": lambda x, m: torch.where(x * 255 >= m, 1 - x, x),
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda x, m: 1 - x,
}
