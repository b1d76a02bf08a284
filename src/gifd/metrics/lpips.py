"""LPIPS with the AlexNet trunk, through the optional package ``lpips``.

Source: Zhang, Isola, Efros, Shechtman and Wang, "The Unreasonable Effectiveness of Deep Features
as a Perceptual Metric", CVPR 2018, version 0.1 of their weights.
"""

import functools
import warnings
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError, one_line
from gifd.metrics.metric import Metric, as_rgb, check_side

_LEAST_SIDE = 31  # pixels; below, AlexNet's second pooling has no window


class LPIPS(Metric):
    """LPIPS-Alex; 0 for equal images, at least 31x31 pixels, grey repeated to three channels.

    The package loads AlexNet's ImageNet weights through torchvision, which downloads them once.

    Raises:
        InputError: On the first call, if the package or its weights are missing.

    Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
    CVPR 2018.
    """

    name = "lpips"
    higher_is_better = False

    def _values(
        self, images: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B"]:
        check_side(images, _LEAST_SIDE, "LPIPS")
        x, y = as_rgb(images, "LPIPS").float(), as_rgb(truth, "LPIPS").float()
        values: Tensor = _network()(x, y, normalize=True)  # normalize: [0, 1] to [-1, 1]
        return values.flatten().double()


@functools.cache
def _network() -> Any:
    try:
        with warnings.catch_warnings():  # the package uses a deprecated option of torchvision
            warnings.simplefilter("ignore")
            import lpips

            return lpips.LPIPS(net="alex", verbose=False).eval()
    except ImportError as error:
        raise InputError(
            "the metric lpips needs the package lpips, which is not installed: "
            'pip install "gifd[lpips]", or use the metric stlpips'
        ) from error
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(
            f"lpips could not load the weights of AlexNet ({one_line(error)}): "
            "it downloads them on first use, so check the network, or use the metric stlpips"
        ) from error
