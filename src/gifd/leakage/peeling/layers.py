"""Linear layers: their weight's gradient as equations for their input.

A convolution multiplies its weight with patches of its input, so with slopes `s = dL/d output`
the gradient of its weight is

    D[o, i, u] = sum_p s[o, p] a[i, p + u],

linear in the input a if s is known, and in s if a is known. A fully connected layer is a
convolution of one position. Positions are those of all images of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_weight


class Layer(ABC):
    """A layer that multiplies its weight with its input."""

    weight: str
    bias: str | None

    @abstractmethod
    def equations(self, slopes: Tensor, gradient: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """`(C, Y)` with `C a = Y`, for the input a with one row per position.

        Args:
            slopes: of its output.
            gradient: of its weight.
            fed: any tensor with the input's shape.
        """

    @abstractmethod
    def rows(self, tensor: Tensor) -> Float[Tensor, "Q C"]:
        """An input or output, one row of channels per position of all images."""

    @abstractmethod
    def from_rows(self, rows: Float[Tensor, "Q C"], like: Tensor) -> Tensor:
        """The inverse of `rows`, with the shape of `like`."""

    @abstractmethod
    def gradient(self, fed: Tensor, slopes: Tensor) -> Tensor:
        """The gradient of its weight."""


@final
@dataclass(frozen=True, kw_only=True)
class Convolution(Layer):
    """A two-dimensional convolution without groups.

    Args:
        weight, bias: names of its parameters.
        kernel, stride, padding, dilation: (height, width).
    """

    weight: str
    bias: str | None
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def keeps_size(self) -> bool:
        """Whether it has one output per input position, and sees beyond the border."""
        same = all(
            2 * p == d * (k - 1)
            for k, p, d in zip(self.kernel, self.padding, self.dilation, strict=True)
        )
        return same and self.stride == (1, 1) == self.dilation and min(self.kernel) > 1

    def equations(self, slopes: Tensor, gradient: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """One equation per output channel and place in the kernel."""
        (batch, channels, *out), side = slopes.shape, fed.shape[-2:]
        places = self.kernel[0] * self.kernel[1]
        spare = [
            size - ((o - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, o, s, p, d, k in zip(
                side, out, self.stride, self.padding, self.dilation, self.kernel, strict=True
            )
        ]
        place = torch.eye(places, dtype=slopes.dtype, device=slopes.device)
        spread = F.conv_transpose2d(
            slopes.reshape(batch * channels, 1, *out),
            place.view(1, places, *self.kernel),
            stride=self.stride,
            padding=self.padding,
            output_padding=spare,
            dilation=self.dilation,
        )
        spread = spread.view(batch, channels, places, -1).permute(1, 2, 0, 3)
        return (
            spread.reshape(channels * places, -1),
            gradient.flatten(2).transpose(1, 2).flatten(0, 1),
        )

    def rows(self, tensor: Tensor) -> Tensor:
        """(B, C, H, W) -> (B H W, C)."""
        return tensor.permute(0, 2, 3, 1).flatten(0, 2)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """(B H W, C) -> (B, C, H, W)."""
        batch, _, height, width = like.shape
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2).contiguous()

    def patches(self, fed: Tensor) -> Float[Tensor, "Q N"]:
        """What each output position sees, in the order of the flattened weight."""
        seen = F.unfold(fed, self.kernel, self.dilation, self.padding, self.stride)
        return seen.transpose(1, 2).flatten(0, 1)

    def output_size(self, side: Sequence[int]) -> tuple[int, int]:
        """(height, width) of the output for an input of this size."""
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                side, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width

    def gradient(self, fed: Tensor, slopes: Tensor) -> Tensor:
        """(O, I, kh, kw)."""
        shape = (slopes.shape[1], fed.shape[1], *self.kernel)
        found: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            fed, shape, slopes, self.stride, self.padding, self.dilation
        )
        return found


@final
@dataclass(frozen=True, kw_only=True)
class FullyConnected(Layer):
    """A linear layer on the last axis.

    Args:
        weight, bias: names of its parameters.
    """

    weight: str
    bias: str | None

    def equations(self, slopes: Tensor, gradient: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """One equation per output."""
        return slopes.flatten(0, -2).T, gradient

    def rows(self, tensor: Tensor) -> Tensor:
        """(B, ..., F) -> (B ..., F)."""
        return tensor.flatten(0, -2)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """(B ..., F) -> (B, ..., F)."""
        return rows.reshape(like.shape)

    def gradient(self, fed: Tensor, slopes: Tensor) -> Tensor:
        """(O, F)."""
        return slopes.flatten(0, -2).T @ fed.flatten(0, -2)


def layer(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Mapping[int, str],
) -> Layer | None:
    """The layer that this call applies; None for another function or an untrained weight.

    Args:
        function: what is called.
        args: of the call.
        kwargs: of the call.
        names: id of a trained parameter -> its name.
    """
    if function is not F.linear and function is not F.conv2d:
        return None
    order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(order, args, strict=False)) | dict(kwargs)
    weight, bias = names.get(id(given["weight"])), names.get(id(given.get("bias")))
    if weight is None:
        return None
    if function is F.linear:
        return FullyConnected(weight=weight, bias=bias)
    padding = given.get("padding", 0)
    if given.get("groups", 1) != 1 or given["input"].ndim != 4:
        return None
    _, _, height, width = given["weight"].shape
    if padding == "same" and (height * width) % 2:
        down, across = _pair(given.get("dilation", 1))
        padding = (down * (height - 1) // 2, across * (width - 1) // 2)
    elif isinstance(padding, str):
        return None
    return Convolution(
        weight=weight,
        bias=bias,
        kernel=(height, width),
        stride=_pair(given.get("stride", 1)),
        padding=_pair(padding),
        dilation=_pair(given.get("dilation", 1)),
    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])
