"""Every option's range: its ends are valid, and values just outside give one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

from gifd.attacker.observation import Ledger
from gifd.attacks import LabelMapping
from gifd.errors import InputError
from gifd.federation.defenses import (
    DPSGD,
    Aggregate,
    Censor,
    Clip,
    Laplace,
    Noise,
    Precode,
    Quantize,
    Soteria,
    Sparsify,
)
from gifd.federation.optimizers import SGD
from gifd.federation.optimizers import Adam as LocalAdam
from gifd.federation.protocols import FedAvg
from gifd.search import (
    CMAES,
    LBFGS,
    Adam,
    DeepPrior,
    Feature,
    GradientRegularized,
    GroupConsistency,
    L1Ball,
    PartialMatching,
    Phase,
    Pixels,
    Regression,
)

LEAST = 1e-9
ALMOST = 1 - 1e-9
phase = partial(Phase, name="a phase", space=Pixels())
mapping = partial(LabelMapping, classify=lambda images: images, name="a mapping")
ledger = partial(Ledger, image_shape=(3, 8, 8))

# what it is, its option, the ends of its range, what lies beyond
RANGES: list[tuple[Callable[..., object], str, list[float], list[float]]] = [
    (Noise, "std", [LEAST, 1e9], [0.0, -LEAST, math.inf, math.nan]),
    (Laplace, "std", [LEAST, 1e9], [0.0, -LEAST, math.inf, math.nan]),
    (Clip, "norm", [LEAST, 1e9], [0.0, -LEAST, math.inf, math.nan]),
    (Sparsify, "rate", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (Soteria, "rate", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (partial(Quantize, scheme="qsgd"), "levels", [1], [0, -1]),
    (partial(DPSGD, norm=1.0), "noise", [0.0, 10.0], [-LEAST, math.nan]),
    (partial(DPSGD, noise=1.0), "norm", [LEAST, 10.0], [0.0, -LEAST, math.nan]),
    (Aggregate, "clients", [1, 100], [0, -1]),
    (Censor, "tries", [1, 100], [0, -1]),
    (Censor, "step", [LEAST, 1.0], [0.0, -LEAST, math.nan]),
    (Precode, "width", [1, 100], [0, -1]),
    (Precode, "beta", [0.0, 1.0], [-LEAST, math.nan]),
    (partial(FedAvg, lr=0.1), "steps", [1, 100], [0, -1]),
    (partial(FedAvg, steps=1), "lr", [LEAST, 10.0], [0.0, -LEAST, math.inf, math.nan]),
    (partial(FedAvg, steps=1, lr=0.1), "clip", [LEAST, 10.0], [0.0, -LEAST, math.inf, math.nan]),
    (partial(FedAvg, steps=1, lr=0.1), "proximal", [0.0, 10.0], [-LEAST, math.inf, math.nan]),
    (SGD, "momentum", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (partial(SGD, momentum=0.5), "dampening", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (SGD, "weight_decay", [0.0, 1.0], [-LEAST, math.inf, math.nan]),
    (LocalAdam, "beta1", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (LocalAdam, "beta2", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (LocalAdam, "eps", [LEAST, 1.0], [0.0, -LEAST, math.inf, math.nan]),
    (LocalAdam, "weight_decay", [0.0, 1.0], [-LEAST, math.inf, math.nan]),
    (partial(FedAvg, steps=1, lr=0.1), "batch_size", [1, 100], [0, -1]),
    (Adam, "lr", [LEAST, 10.0], [0.0, -LEAST]),
    (Adam, "noise", [0.0, 1.0], [-LEAST]),
    (GradientRegularized, "lr", [LEAST, 10.0], [0.0, -LEAST]),
    (GradientRegularized, "share", [0.0, 1.0], [-LEAST, 1 + LEAST, math.nan]),
    (GradientRegularized, "decay", [0.0, 1.0], [-LEAST]),
    (LBFGS, "lr", [LEAST, 10.0], [0.0, -LEAST]),
    (LBFGS, "history", [1, 100], [0, -1]),
    (CMAES, "population", [4, 100], [3, 0]),
    (CMAES, "sigma", [LEAST, 10.0], [0.0, -LEAST]),
    (Regression, "evaluations", [0, 100], [-1]),
    (Regression, "shift", [0.0, ALMOST], [-LEAST, 1.0, math.nan]),
    (Regression, "fit", [1, 100], [0, -1]),
    (Regression, "lr", [LEAST, 10.0], [0.0, -LEAST]),
    (DeepPrior, "width", [4, 100], [3, 0]),
    (DeepPrior, "noise", [1, 100], [0, -1]),
    (Feature, "depth", [1, 100], [0, -1]),
    (PartialMatching, "share", [LEAST, 1.0], [0.0, 1 + LEAST, math.nan]),
    (L1Ball, "radius", [LEAST, 1e9], [0.0, -LEAST]),
    (L1Ball, "share", [LEAST, 1e9], [0.0, -LEAST]),
    (partial(GroupConsistency, weight=1.0), "begin", [0.0, 1.0], [-LEAST, 1 + LEAST, math.nan]),
    (partial(GroupConsistency, weight=1.0), "every", [LEAST, 1.0], [0.0, 1 + LEAST, math.nan]),
    (phase, "steps", [1, 100], [0, -1]),
    (partial(phase, steps=1), "curvature", [0.0, 1.0], [-LEAST]),
    (partial(phase, steps=1), "smoothing", [0.0, 1.0], [-LEAST]),
    (partial(phase, steps=1), "keep", [1, 100], [0, -1]),
    (mapping, "coarse", [LEAST, 1.0], [0.0, -LEAST, 1 + LEAST, math.nan]),
    (ledger, "batch_size", [1, 100], [0, -1]),
]


def named(value: object) -> str:
    kind = value.func if isinstance(value, partial) else value
    return str(getattr(kind, "__name__", value))


@pytest.mark.parametrize(("make", "option", "ends", "beyond"), RANGES, ids=named)
def test_the_ends_of_a_range_are_taken_and_nothing_beyond(
    make: Callable[..., object], option: str, ends: list[float], beyond: list[float]
) -> None:
    for value in ends:
        assert getattr(make(**{option: value}), option) == value
    for value in beyond:
        with pytest.raises(InputError, match="expected") as error:
            make(**{option: value})
        assert "\n" not in str(error.value)
        assert f"{value:g}" in str(error.value) or repr(value) in str(error.value)
