"""Networks from libraries, each an extra: built from a configuration, nothing downloaded."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

from torch import nn

from gifd.errors import InputError
from gifd.victims.networks import Size

LARGEST_PATCH = 16
FEWEST_PATCHES = 8
"""Per side; fewer would give a small image only a few tokens."""


def densenet121(classes: int, channels: int = 3) -> nn.Module:
    """DenseNet-121 of MONAI (extra 'monai'), from 32 px.

    Raises:
        InputError: MONAI is not installed.

    Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017.
    """
    nets = _library("monai.networks.nets", "monai")
    built: nn.Module = nets.DenseNet121(spatial_dims=2, in_channels=channels, out_channels=classes)
    return built


def resnet50(classes: int, channels: int = 3) -> nn.Module:
    """ResNet-50 of Hugging Face (extra 'transformers'), with 7x7 stem and max-pooling.

    Raises:
        InputError: transformers is not installed.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """
    return _hugging_face("ResNet", classes, num_channels=channels)


def convnext(classes: int, channels: int = 3) -> nn.Module:
    """ConvNeXt-T of Hugging Face (extra 'transformers'), from 32 px.

    Its layer scales are initialised to 1e-6: untrained, it is almost only its strided
    convolutions.

    Raises:
        InputError: transformers is not installed.

    Source: Liu et al., A ConvNet for the 2020s, CVPR 2022.
    """
    return _hugging_face("ConvNext", classes, num_channels=channels)


def vit(
    classes: int,
    size: Size,
    *,
    patch: int | None = None,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    channels: int = 3,
) -> nn.Module:
    """ViT-B of Hugging Face (extra 'transformers'), with patches to suit the image size.

    Args:
        classes: number of classes.
        size: side of the images, or height and width.
        patch: side of a patch, which divides the sides. By default the largest divisor up to 16
            that leaves at least 8 x 8 patches: 16 for 224, 8 for 64, 4 for 32, 2 for 16.
        width: size of a token.
        depth: number of blocks.
        heads: number of attention heads.
        channels: of the images.

    Raises:
        InputError: transformers is not installed, or the patch or heads do not divide.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
    """
    return _transformer("ViT", classes, size, patch, width, depth, heads, channels)


def deit(
    classes: int,
    size: Size,
    *,
    patch: int | None = None,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    channels: int = 3,
) -> nn.Module:
    """DeiT-Ti of Hugging Face (extra 'transformers'), with patches to suit the image size.

    Tokens and position embeddings are initialised as by the authors. The library leaves them at
    zero, where an untrained layer norm has a derivative of about a million.

    Args:
        classes: number of classes.
        size: side of the images, or height and width.
        patch: as for `vit`.
        width: size of a token.
        depth: number of blocks.
        heads: number of attention heads.
        channels: of the images.

    Raises:
        InputError: transformers is not installed, or the patch or heads do not divide.

    Source: Touvron et al., Training Data-Efficient Image Transformers, ICML 2021.
    """
    built = _transformer("DeiT", classes, size, patch, width, depth, heads, channels)
    embeddings: Any = built.get_submodule("deit.embeddings")
    for tokens in (
        embeddings.cls_token,
        embeddings.distillation_token,
        embeddings.position_embeddings,
    ):
        nn.init.trunc_normal_(tokens, std=0.02)
    return built


def _transformer(
    kind: str,
    classes: int,
    size: Size,
    patch: int | None,
    width: int,
    depth: int,
    heads: int,
    channels: int,
) -> nn.Module:
    side = patch_of(size) if patch is None else patch
    sides = (size, size) if isinstance(size, int) else size
    if min(side, width, depth, heads) < 1 or math.gcd(*sides) % side or width % heads:
        raise InputError(
            f"expected a patch that divides {size} and heads that divide the width, got "
            f"patch={side}, width={width}, depth={depth}, heads={heads}"
        )
    return _hugging_face(
        kind,
        classes,
        image_size=sides,
        num_channels=channels,
        patch_size=side,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
    )


def patch_of(size: Size) -> int:
    """The largest divisor of the sides, up to 16, that leaves at least 8 x 8 patches.

    Raises:
        InputError: there is only 1.
    """
    sides = (size, size) if isinstance(size, int) else size
    most = max(1, min(LARGEST_PATCH, min(sides) // FEWEST_PATCHES))
    side = next(patch for patch in range(most, 0, -1) if math.gcd(*sides) % patch == 0)
    if side == 1:
        raise InputError(
            f"expected a size that divides into at least {FEWEST_PATCHES} patches a side of 2 to "
            f"{LARGEST_PATCH} pixels, got {size}: choose another size, or give the victim's patch"
        )
    return side


def _hugging_face(kind: str, classes: int, **settings: int | tuple[int, int]) -> nn.Module:
    library = _library("transformers", "transformers")
    config = getattr(library, f"{kind}Config")(num_labels=classes, **settings)
    built: nn.Module = getattr(library, f"{kind}ForImageClassification")(config)
    return built


def _library(module: str, extra: str) -> Any:
    try:
        with warnings.catch_warnings():  # deprecations in other libraries
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"expected the library {extra} for this victim, it is not installed: "
            f'pip install "gifd[{extra}]"'
        ) from None
