"""First: the value nearest to the output that a layer's own gradient shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gifd.leakage.peeling.circuit import Pass, Read
from gifd.leakage.peeling.factors import factors
from gifd.leakage.peeling.layers import Convolution, FullyConnected
from gifd.leakage.peeling.least_squares import least_squares
from gifd.leakage.peeling.mixtures import separation


class Shown(NamedTuple):
    """A layer's input and the slopes of its output, one of each image, in any order."""

    fed: Tensor
    slopes: Tensor


def shown_by(
    read: Read, made: Pass, gradient: Mapping[str, Tensor], batch: int, rng: torch.Generator
) -> Shown | None:
    """The input of this layer by its own gradient and that of a bias; None if they do not show it.

    A head with a bias shows the input of one image exactly: `D = s a^T`, and s is the bias's
    gradient. For a convolution see `gifd.leakage.peeling.factors`; the gradient of a bias, its own
    or that of the batch norm behind it, then gives the factor of each image.

    Args:
        read: the layer, in the pass `made`.
        made: any pass.
        gradient: of every parameter, float64.
        batch: B, the number of images.
        rng: see `separation`.

    Source: for the head Geiping et al., Inverting Gradients, NeurIPS 2020, Prop. 3.1.
    """
    layer = read.layer
    if len(read.fed) != batch:
        return None
    if isinstance(layer, FullyConnected):
        if batch > 1 or read.fed.ndim != 2 or layer.bias is None:
            return None
        slopes = gradient[layer.bias]
        if not bool(slopes.any()):
            return None
        return Shown((slopes @ gradient[layer.weight] / slopes.square().sum())[None], slopes[None])
    if not isinstance(layer, Convolution) or not layer.keeps_size:
        return None
    height, width = read.fed.shape[-2:]
    found = factors(gradient[layer.weight], layer, (height, width), batch)
    if found is None:
        return None
    slopes, fed = found
    unmixing = separation(fed.flatten(1), rng)
    if unmixing is None:
        return None
    fed = torch.einsum("ab,b...->a...", unmixing, fed)
    slopes = torch.einsum("ba,b...->a...", torch.linalg.inv(unmixing), slopes)
    lengths = _lengths(read, made, gradient, slopes)
    if lengths is None:
        return None
    lengths = lengths.view(-1, 1, 1, 1)
    return Shown(fed / lengths, slopes * lengths)


def _lengths(
    read: Read, made: Pass, gradient: Mapping[str, Tensor], slopes: Tensor
) -> Tensor | None:
    """(B,) what each image's slopes are to be multiplied with; None without a bias."""
    total, name = slopes.sum((2, 3)).T, read.layer.bias  # (O, B)
    if name is None:
        behind = [norm for norm in made.norms if norm.fed.data_ptr() == read.result.data_ptr()]
        if not behind:
            return None
        total, name = total / behind[0].factor[:, None], behind[0].bias
    usable = total.isfinite().all(1)
    found: Tensor = least_squares(total[usable], gradient[name][usable, None])[:, 0]
    return found if bool((found.isfinite() & (found != 0)).all()) else None
