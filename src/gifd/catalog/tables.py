"""The tables: the object of each name on the command line.

Descriptions and sources are in the objects' docstrings (`gifd.catalog.described`), options in
their signatures (`gifd.catalog.signatures`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from gifd.attacks import (
    Attack,
    dlg,
    ensemble,
    fedleak,
    ggl,
    gias,
    gifd,
    gifd_last,
    gifd_latent,
    gifd_noball,
    gradinversion,
    idlg,
    ig,
    lti,
    peel,
)
from gifd.federation.defenses import (
    ATS,
    DPSGD,
    Aggregate,
    Censor,
    Clip,
    Defense,
    Hide,
    Laplace,
    Noise,
    Precode,
    Quantize,
    Soteria,
    Sparsify,
)
from gifd.leakage.counts import (
    ClassEmbeddings,
    ClassMeans,
    Distinct,
    DummyMean,
    Impact,
    LabelEstimator,
)
from gifd.metrics import LPIPS, MSE, PSNR, SSIM, STLPIPS, Metric
from gifd.priors import FACES64, PHOTOS64, Generator, digiface_dcgan, faces64, photos64
from gifd.victims import (
    ConvNet,
    LeNet,
    ResNet18,
    convnext,
    deit,
    densenet121,
    efficientnet_lite0,
    resnet50,
    vgg11,
    vgg16,
    vit,
)
from gifd.weights import DIGIFACE_DCGAN, ShippedFile, WheelFile

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "gifd": gifd,
    "gifd-latent": gifd_latent,
    "gifd-last": gifd_last,
    "gifd-noball": gifd_noball,
    "gias": gias,
    "ggl": ggl,
    "fedleak": fedleak,
    "gradinversion": gradinversion,
    "idlg": idlg,
    "dlg": dlg,
    "ig": ig,
    "ensemble": ensemble,
    "lti": lti,
    "peel": peel,
}

DEFENSES: Mapping[str, type[Defense]] = {
    "noise": Noise,
    "laplace": Laplace,
    "clip": Clip,
    "sparsify": Sparsify,
    "soteria": Soteria,
    "quantize": Quantize,
    "dpsgd": DPSGD,
    "censor": Censor,
    "ats": ATS,
    "precode": Precode,
    "aggregate": Aggregate,
    "hide": Hide,
}

PRIORS: Mapping[str, Callable[..., Generator]] = {
    "faces64": faces64,
    "photos64": photos64,
    "digiface-dcgan": digiface_dcgan,
}

WEIGHTS: Mapping[str, ShippedFile | WheelFile] = {
    file.name: file for file in (FACES64, PHOTOS64, DIGIFACE_DCGAN)
}
"""The priors' files."""

VICTIMS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "convnet": ConvNet,
    "lenet": LeNet,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "convnext": convnext,
    "vit": vit,
    "deit": deit,
    "efficientnet-lite0": efficientnet_lite0,
}

LABELS: Mapping[str, type[LabelEstimator]] = {
    "dummy-mean": DummyMean,
    "class-embeddings": ClassEmbeddings,
    "impact": Impact,
    "distinct": Distinct,
    "class-means": ClassMeans,
}

METRICS: Mapping[str, type[Metric]] = {
    "psnr": PSNR,
    "ssim": SSIM,
    "mse": MSE,
    "stlpips": STLPIPS,
    "lpips": LPIPS,
}


@dataclass(frozen=True, kw_only=True)
class ByHandEntry:
    """A public prior that users download themselves: source, licence, size, description."""

    source: str
    licence: str
    size: str
    summary: str


_HUGGING_FACE = "https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-{0}-"

BY_HAND: Mapping[str, ByHandEntry] = {
    "stylegan2-ffhq": ByHandEntry(
        source="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/ffhq.pkl",
        licence="NVIDIA Source Code License, non-commercial",
        size="",
        summary="StyleGAN2 of faces (FFHQ), 1024 px, as in the paper",
    ),
    **{
        f"biggan-deep-{side}": ByHandEntry(
            source=f"{_HUGGING_FACE.format(side)}pytorch_model.bin and -config.json, kept in one "
            "folder as pytorch_model.bin and config.json",
            licence="as released by DeepMind",
            size=f"{megabytes} MB",
            summary=f"BigGAN-deep of ImageNet, {side} px{', as in the paper' * (side == 256)}",
        )
        for side, megabytes in ((128, 201), (256, 224), (512, 225))
    },
}
"""Public files that are too large, or whose terms are too strict, to download automatically."""
