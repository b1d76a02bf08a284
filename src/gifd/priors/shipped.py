"""The priors included in the package, with the checksums of their weights."""

from __future__ import annotations

from gifd.priors.checkpoints import read_checkpoint
from gifd.priors.generator import Generator
from gifd.priors.stylegan2 import LatentSpace
from gifd.weights import ShippedFile, fetch

FACES64 = ShippedFile(
    name="faces64",
    member="faces64.safetensors",
    sha256="add1c29784aa633f22dce0dffbe130f9c4473b2b6fc8b001365999cb6799ed4a",
    licence="research use (UTKFace)",
    size_bytes=1_625_984,
    note="StyleGAN2 of 64x64 face images, trained with 'gifd prior train'.",
)

PHOTOS64 = ShippedFile(
    name="photos64",
    member="photos64.safetensors",
    sha256="08247a3f32c72e037e801d09c42a91094493bb9e527bb7ae4eb9d548a45fda07",
    licence="research use (ImageNet)",
    size_bytes=1_661_744,
    note="StyleGAN2 of 64x64 photographs in 10 classes, trained with 'gifd prior train'.",
)


def faces64(
    *, latent: LatentSpace = "w+", resolution: int | None = None, area: int | None = None
) -> Generator:
    """The 64 px StyleGAN2 of faces (UTKFace), trained by us.

    Its card is `priors/weights/faces64.md`.

    Args:
        latent: the space that the latent is drawn from and searched in.
        resolution: stop at this resolution: the early exit.
        area: average the images down to this size.

    Raises:
        InputError: a resolution that it does not pass, or a size its images do not divide into.
        WeightsError: the installed file is damaged.
    """
    return _shipped(FACES64, latent, resolution, area)


def photos64(
    *, latent: LatentSpace = "w+", resolution: int | None = None, area: int | None = None
) -> Generator:
    """The 64 px StyleGAN2 of photographs in 10 classes (Imagenette), trained by us.

    Its card is `priors/weights/photos64.md`.

    Args:
        latent: the space that the latent is drawn from and searched in.
        resolution: stop at this resolution: the early exit.
        area: average the images down to this size.

    Raises:
        InputError: a resolution that it does not pass, or a size its images do not divide into.
        WeightsError: the installed file is damaged.
    """
    return _shipped(PHOTOS64, latent, resolution, area)


def _shipped(
    file: ShippedFile, latent: LatentSpace, resolution: int | None, area: int | None
) -> Generator:
    """An included prior. Its noise maps hardly matter: they are neither random nor searched."""
    return read_checkpoint(fetch(file)).generator(
        name=file.name,
        latent=latent,
        noise="const",
        optimise=("w",),
        resolution=resolution,
        area=area,
    )
