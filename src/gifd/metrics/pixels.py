"""Metrics on pixels: mean squared error, PSNR and SSIM."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from skimage.metrics import structural_similarity
from torch import Tensor

from gifd.metrics.metric import Metric, check_side

_SSIM_WINDOW = 11  # pixels: a Gaussian of sigma 1.5 cut at 3.5 sigma
_ssim: Callable[..., float] = structural_similarity  # scikit-image gives it no types


class MSE(Metric):
    """Mean squared error over channels and pixels; 0 for equal images."""

    name = "mse"
    higher_is_better = False

    def _values(
        self, images: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B"]:
        return (images - truth).square().flatten(1).mean(1)


class PSNR(Metric):
    """Peak signal-to-noise ratio in dB at peak 1, ``-10 log10(MSE)``; inf for equal images."""

    name = "psnr"
    higher_is_better = True

    def _values(
        self, images: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B"]:
        return -10 * (images - truth).square().flatten(1).mean(1).log10()


class SSIM(Metric):
    r"""Structural similarity, 1 for equal images, at least 11x11 pixels.

    The mean over windows and channels of

    ``(2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2))``

    with means, variances and covariance under an 11x11 Gaussian window of sigma 1.5 inside the
    image, ``C1 = 0.01^2`` and ``C2 = 0.03^2``.

    Source: Wang et al., "Image quality assessment: from error visibility to structural
    similarity", IEEE TIP 13(4), 2004, eq. 13-17; applied to each channel.
    """

    name = "ssim"
    higher_is_better = True

    def _values(
        self, images: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B"]:
        check_side(images, _SSIM_WINDOW, "SSIM")
        values = [
            _ssim(
                image.numpy(),
                true.numpy(),
                data_range=1.0,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for image, true in zip(images, truth, strict=True)
        ]
        return torch.tensor(values, dtype=torch.float64)
