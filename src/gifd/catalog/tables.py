"""The tables: what each name on a command line stands for. The only strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from gifd.attacks import (
    Attack,
    dlg,
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
)
from gifd.federation.defenses import (
    ATS,
    DPSGD,
    Aggregate,
    Censor,
    Clip,
    Defense,
    Laplace,
    Noise,
    Precode,
    Quantize,
    Soteria,
    Sparsify,
)
from gifd.leakage.counts import ClassEmbeddings, Distinct, DummyMean, Impact, LabelEstimator
from gifd.metrics import LPIPS, MSE, PSNR, SSIM, STLPIPS, Metric
from gifd.priors import (
    FACES64,
    PHOTOS64,
    Checkpoint,
    Generator,
    digiface_dcgan,
    shipped_checkpoint,
)
from gifd.victims import ConvNet, LeNet, ResNet18
from gifd.weights import DIGIFACE_DCGAN, ShippedFile, WheelFile


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """An attack by name: how it is built and where it comes from."""

    build: Callable[..., Attack]
    needs_prior: bool
    summary: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class DefenseEntry:
    """A defence by name: its class, whose fields are its options, and where it comes from."""

    build: Callable[..., Defense]
    summary: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class PriorEntry:
    """A prior by name: how it is loaded (`load(offline)`) and which file it is."""

    load: Callable[[bool], Generator | Checkpoint]
    file: WheelFile | ShippedFile
    summary: str


@dataclass(frozen=True, kw_only=True)
class ByHandEntry:
    """A public prior that its user downloads: where it is, on which terms, what it is."""

    source: str
    licence: str
    size: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class VictimEntry:
    """A victim by name: `build(classes, size)` makes its network with random weights."""

    build: Callable[[int, int], nn.Module]
    summary: str


_GIFD = "Fang et al., ICCV 2023"

ATTACKS: Mapping[str, AttackEntry] = {
    "gifd": AttackEntry(
        build=gifd,
        needs_prior=True,
        summary="latent, then feature domains, each in an L1 ball; least distance wins",
        reference=_GIFD,
    ),
    "gifd-latent": AttackEntry(
        build=gifd_latent,
        needs_prior=True,
        summary="ablation: the latent alone, with the whole budget",
        reference=_GIFD,
    ),
    "gifd-last": AttackEntry(
        build=gifd_last,
        needs_prior=True,
        summary="ablation: the last feature domain answers, whatever its distance",
        reference=_GIFD,
    ),
    "gifd-noball": AttackEntry(
        build=gifd_noball,
        needs_prior=True,
        summary="ablation: features without balls, as intermediate layer optimisation",
        reference="Daras et al., ICML 2021",
    ),
    "gias": AttackEntry(
        build=gias,
        needs_prior=True,
        summary="latent, then the generator's weights, for each image its own",
        reference="Jeon et al., NeurIPS 2021",
    ),
    "ggl": AttackEntry(
        build=ggl,
        needs_prior=True,
        summary="Generative Gradient Leakage: latent by CMA-ES, no gradients",
        reference="Li et al., CVPR 2022",
    ),
    "fedleak": AttackEntry(
        build=fedleak,
        needs_prior=False,
        summary="an untrained network's weights, partial matching, gradient regularisation",
        reference="Fan et al., USENIX Security 2025",
    ),
    "gradinversion": AttackEntry(
        build=gradinversion,
        needs_prior=False,
        summary="pixels, squared distance, batch norm, restarts that agree",
        reference="Yin et al., CVPR 2021",
    ),
    "idlg": AttackEntry(
        build=idlg,
        needs_prior=False,
        summary="DLG with the label read off the update",
        reference="Zhao et al., 2020",
    ),
    "dlg": AttackEntry(
        build=dlg,
        needs_prior=False,
        summary="Deep Leakage from Gradients: pixels and soft labels, L-BFGS",
        reference="Zhu et al., NeurIPS 2019",
    ),
    "ig": AttackEntry(
        build=ig,
        needs_prior=False,
        summary="Inverting Gradients: pixels, cosine and total variation",
        reference="Geiping et al., NeurIPS 2020",
    ),
}

PRIORS: Mapping[str, PriorEntry] = {
    "faces64": PriorEntry(
        load=lambda offline: shipped_checkpoint(FACES64),
        file=FACES64,
        summary="64 px StyleGAN2 of faces (UTKFace), trained by us",
    ),
    "photos64": PriorEntry(
        load=lambda offline: shipped_checkpoint(PHOTOS64),
        file=PHOTOS64,
        summary="64 px StyleGAN2 of photographs in 10 classes (Imagenette), trained by us",
    ),
    "digiface-dcgan": PriorEntry(
        load=lambda offline: digiface_dcgan(offline=offline),
        file=DIGIFACE_DCGAN,
        summary="64 px DCGAN of synthetic faces (DigiFace-1M)",
    ),
}

_HUGGING_FACE = "https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-{0}-"

BY_HAND: Mapping[str, ByHandEntry] = {
    "stylegan2-ffhq": ByHandEntry(
        source="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/ffhq.pkl",
        licence="NVIDIA Source Code License, non-commercial",
        size="",
        summary="the paper's faces: StyleGAN2, FFHQ, 1024 px",
    ),
    **{
        f"biggan-deep-{side}": ByHandEntry(
            source=f"{_HUGGING_FACE.format(side)}pytorch_model.bin and -config.json, kept in one "
            "folder as pytorch_model.bin and config.json",
            licence="as released by DeepMind",
            size=f"{megabytes} MB",
            summary=f"BigGAN-deep, ImageNet, {side} px{', the paper' if side == 256 else ''}",
        )
        for side, megabytes in ((128, 201), (256, 224), (512, 225))
    },
}
"""Public files too large, or bound to terms too strict, to fetch for anyone."""

VICTIMS: Mapping[str, VictimEntry] = {
    "resnet18": VictimEntry(
        build=lambda classes, size: ResNet18(classes),
        summary="ResNet-18, 3x3 stem, no max-pooling: the papers' victim",
    ),
    "convnet": VictimEntry(
        build=lambda classes, size: ConvNet(classes),
        summary="four strided convolutions with batch norm: small and quick",
    ),
    "lenet": VictimEntry(
        build=LeNet,
        summary="the sigmoid LeNet of Deep Leakage from Gradients",
    ),
}

DEFENSES: Mapping[str, DefenseEntry] = {
    "noise": DefenseEntry(
        build=Noise,
        summary="std: Gaussian noise on what is sent",
        reference="Zhu et al., NeurIPS 2019",
    ),
    "laplace": DefenseEntry(
        build=Laplace,
        summary="std: Laplacian noise on what is sent",
        reference="Zhu et al., NeurIPS 2019",
    ),
    "clip": DefenseEntry(
        build=Clip,
        summary="norm, per_layer: what is sent is no longer than that",
        reference="Abadi et al., CCS 2016",
    ),
    "sparsify": DefenseEntry(
        build=Sparsify,
        summary="rate, per_layer: the smallest numbers are zero",
        reference="Aji and Heafield, EMNLP 2017",
    ),
    "soteria": DefenseEntry(
        build=Soteria,
        summary="rate: the telling columns of the head's gradient are zero",
        reference="Sun et al., CVPR 2021",
    ),
    "quantize": DefenseEntry(
        build=Quantize,
        summary="scheme (sign, ternary, qsgd, int8, fp16, bf16), levels: few distinct values",
        reference="Alistarh et al., NeurIPS 2017",
    ),
    "dpsgd": DefenseEntry(
        build=DPSGD,
        summary="noise, norm: each example's gradient clipped, then noise",
        reference="Abadi et al., CCS 2016",
    ),
    "censor": DefenseEntry(
        build=Censor,
        summary="tries, step: a vector orthogonal to the gradient that lowers the loss",
        reference="Zhang et al., NDSS 2025",
    ),
    "ats": DefenseEntry(
        build=ATS,
        summary="policies, seed: the images transformed by searched policies",
        reference="Gao et al., CVPR 2021",
    ),
    "precode": DefenseEntry(
        build=Precode,
        summary="width, beta, seed: a variational bottleneck in front of the head",
        reference="Scheliga et al., WACV 2022",
    ),
    "aggregate": DefenseEntry(
        build=Aggregate,
        summary="clients: the server sees the mean of so many clients",
        reference="Bonawitz et al., CCS 2017",
    ),
}

LABELS: Mapping[str, Callable[[], LabelEstimator]] = {
    "dummy-mean": DummyMean,
    "class-embeddings": ClassEmbeddings,
    "impact": Impact,
    "distinct": Distinct,
}

METRICS: Mapping[str, type[Metric]] = {
    "psnr": PSNR,
    "ssim": SSIM,
    "mse": MSE,
    "stlpips": STLPIPS,
    "lpips": LPIPS,
}
