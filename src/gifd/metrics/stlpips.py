"""ST-LPIPS: a learned perceptual distance that tolerates small shifts.

Source: Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022, with their
AlexNet weights. The trunk is AlexNet with stride 1 in the first convolution and, in place of each
downsampling by two, a 3x3 binomial blur of stride 2 after reflection padding by two pixels.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gifd.metrics.metric import Metric, as_rgb, check_side
from gifd.tensor_files import read_tensors
from gifd.weights import STLPIPS_ALEX, fetch

_LEAST_SIDE = 21  # pixels; below, the last mirrored border exceeds the feature map
_CHUNK = 64  # images per pass, to bound the memory: about 0.2 GB at 64x64


class STLPIPS(Metric):
    """ST-LPIPS with the AlexNet trunk; 0 for equal images, at least 21x21 pixels.

    The sum over five layers l of the mean over positions of ``w_l . (f_l(x) - f_l(y))^2``, f_l
    the features of layer l divided by their norm over channels. Grey images are repeated to
    three channels. The first call fetches the weights (9.9 MB), once per process.

    Args:
        offline: Use cached weights and download nothing.

    Raises:
        WeightsError: On the first call, if the weights cannot be loaded.

    Source: Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, ECCV 2022.
    """

    name = "stlpips"
    higher_is_better = False

    def __init__(self, *, offline: bool = False) -> None:
        """See the class."""
        self.offline = offline

    def _values(
        self, images: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B"]:
        check_side(images, _LEAST_SIDE, "ST-LPIPS")
        x, y = as_rgb(images, "ST-LPIPS").float(), as_rgb(truth, "ST-LPIPS").float()
        weights = _weights(self.offline)
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(x), _CHUNK)]
        return torch.cat([_distance(x[chunk], y[chunk], weights) for chunk in chunks])


def alexnet_features(
    images: Float[Tensor, "B C H W"], *, offline: bool = False
) -> Float[Tensor, "B 1152"]:
    """The trunk's features of images in [0, 1]: its five layers, normalised at each position and
    averaged over positions. Each layer contributes at most 1 / 5 to the squared length.

    Raises:
        InputError: images smaller than 21 pixels, or with neither 1 nor 3 channels.
        WeightsError: the weights cannot be loaded.
    """
    check_side(images, _LEAST_SIDE, "AlexNet's features")
    x = as_rgb(images, "AlexNet's features").float().cpu()
    weights = _weights(offline)
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), _CHUNK):
            chunk = x[start : start + _CHUNK]
            layers = [_unit(layer).mean((2, 3)) for layer in _features(chunk, weights)]
            parts.append(torch.cat(layers, dim=1) / math.sqrt(len(layers)))
    return torch.cat(parts)


@functools.cache
def _weights(offline: bool) -> dict[str, Tensor]:
    return read_tensors(fetch(STLPIPS_ALEX, offline=offline))


def _distance(
    x: Float[Tensor, "B 3 H W"], y: Float[Tensor, "B 3 H W"], weights: dict[str, Tensor]
) -> Float[Tensor, "B"]:
    total = torch.zeros(len(x), dtype=torch.float64)
    layers = zip(_features(x, weights), _features(y, weights), strict=True)
    for layer, (a, b) in enumerate(layers):
        calibration = weights[f"lin{layer}.model.1.weight"]
        difference = (_unit(a) - _unit(b)).square()
        total += functional.conv2d(difference, calibration).mean((1, 2, 3)).double()
    return total


def _features(x: Float[Tensor, "B 3 H W"], weights: dict[str, Tensor]) -> list[Tensor]:
    """The five activations of the trunk for images in [0, 1]."""

    def convolve(h: Tensor, layer: str, padding: int) -> Tensor:
        weight, bias = weights[f"net.{layer}.weight"], weights[f"net.{layer}.bias"]
        return functional.conv2d(h, weight, bias, padding=padding)

    def shrink(h: Tensor) -> Tensor:
        return _blur(functional.max_pool2d(h, kernel_size=3, stride=1))

    h = (2 * x - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    first = _blur(convolve(h, "slice1.0", 2)).relu()
    second = convolve(shrink(first), "slice2.5", 2).relu()
    third = convolve(shrink(second), "slice3.9", 1).relu()
    fourth = convolve(third, "slice4.11", 1).relu()
    fifth = convolve(fourth, "slice5.13", 1).relu()
    return [first, second, third, fourth, fifth]


def _blur(h: Tensor) -> Tensor:
    """Each channel filtered by (1, 2, 1)/4 along both axes, with stride 2."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=h.dtype)
    kernel = torch.outer(line, line).expand(h.shape[1], 1, 3, 3)
    mirrored = functional.pad(h, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(mirrored, kernel, stride=2, groups=h.shape[1])


def _unit(h: Tensor) -> Tensor:
    return h / (h.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
