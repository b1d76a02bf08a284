"""The priors of our own that ship with the package, and their weights' checksums."""

from __future__ import annotations

from typing import Any

from gifd.priors.checkpoints import read_checkpoint
from gifd.priors.generator import Generator
from gifd.weights import ShippedFile, fetch

FACES64 = ShippedFile(
    name="faces64",
    member="faces64.safetensors",
    sha256="add1c29784aa633f22dce0dffbe130f9c4473b2b6fc8b001365999cb6799ed4a",
    licence="research use (UTKFace)",
    size_bytes=1_625_984,
    note="StyleGAN2 of 64x64 face images, trained with 'gifd prior train'.",
)


def faces64(**options: Any) -> Generator:
    """The 64 px StyleGAN2 of faces, see its card `priors/weights/faces64.md`.

    Its noise maps hardly matter, so they are neither drawn nor searched by default.

    Args:
        options: of `gifd.priors.stylegan2`, as `latent="z"`.

    Raises:
        WeightsError: the installed file is damaged.
    """
    chosen = {"noise": "const", "optimise": ("w",)} | options
    return read_checkpoint(fetch(FACES64)).generator(name=FACES64.name, **chosen)
