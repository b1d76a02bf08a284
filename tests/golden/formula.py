"""Weights and inputs by formula, the same on every machine and in every version of PyTorch."""

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def numbers(name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Numbers in [-1, 1] that look random and depend on the name."""
    start = zlib.crc32(name.encode()) % 10_000
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(start + 12.9898 * steps).mul(43758.5453).frac().float().reshape(shape)


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights of these names and shapes by formula, with valid variances and filters."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    taps = torch.outer(taps, taps) / 64
    filled = {}
    for name, shape in shapes.items():
        value = numbers(name, tuple(shape))
        if name.endswith("running_vars"):
            value = 1 + value / 2
        elif name.endswith("resample_filter"):
            value = taps
        elif name.endswith("kernel"):
            value = 4 * taps
        elif name.endswith("bias") and ("affine" in name or "modulation" in name):
            value = 1 + value / 4
        elif name.startswith(("mapping.fc", "style.")):
            value = 100 * value  # a learning rate of 0.01 is part of their scale
        filled[name] = value
    for name in [name for name in filled if name.endswith("weight_orig")]:
        stem = name.removesuffix("orig")  # u and v for activations of order 1
        matrix, u = filled[name].flatten(1), filled[f"{stem}u"]
        filled[f"{stem}u"] = 4 * u / u.norm()
        v = matrix.T @ filled[f"{stem}u"]
        filled[f"{stem}v"] = v / v.norm()
    return filled


def probe(images: Tensor) -> Tensor:
    """A scalar that depends on every pixel."""
    return (images * numbers("probe", images.shape)).sum()


def digest(tensor: Tensor) -> list[float]:
    """A digest of a tensor: four inner products with different patterns."""
    flat = tensor.detach().double().flatten()
    patterns = [numbers(f"digest {i}", flat.shape).double() for i in range(4)]
    return [float(flat @ pattern / len(flat) ** 0.5) for pattern in patterns]


def apart(one: list[float], other: list[float]) -> float:
    """The relative distance of two digests."""
    a, b = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    return float((a - b).norm() / b.norm())
