"""Tiny generators of the paper's architectures, their weights by formula."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gifd.priors.stylegan2 import stylegan2_tensors
from golden.formula import weights

GOLDEN = json.loads((Path(__file__).parent / "priors.json").read_text())


def named(reference: str) -> dict[str, Tensor]:
    """The weights of a reference in `priors.json`, under its names."""
    return weights(GOLDEN[reference]["shapes"])


def small_stylegan2(classes: int = 0, resolution: int = 16) -> dict[str, Tensor]:
    """Three blocks, up to 16 px, or four, up to 32."""
    channels = [10, 8, 6, 6][: 3 if resolution == 16 else 4]
    tensors = stylegan2_tensors(channels, z=7, w=9, classes=classes, layers=2)
    return weights({name: list(tensor.shape) for name, tensor in tensors.items()})


def as_hugging_face(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    """A folder in Hugging Face's format, with the BigGAN-deep in `priors.json`."""
    torch.save(dict(tensors), folder / "pytorch_model.bin")
    layers = [[False, 16, 16], [True, 16, 8], [False, 8, 8], [True, 8, 4], [False, 4, 2]]
    config = {"layers": [*layers, [True, 2, 1]], "eps": 1e-4, "n_stats": 11}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
