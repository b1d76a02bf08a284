"""Metrics: scores of reconstructions against the private images. Attacks never use them."""

from gifd.metrics.kernel import kernel_distance
from gifd.metrics.lpips import LPIPS
from gifd.metrics.metric import Metric
from gifd.metrics.pixels import MSE, PSNR, SSIM
from gifd.metrics.score import match, score
from gifd.metrics.stlpips import STLPIPS

__all__ = [
    "LPIPS",
    "MSE",
    "PSNR",
    "SSIM",
    "STLPIPS",
    "Metric",
    "kernel_distance",
    "match",
    "score",
]
