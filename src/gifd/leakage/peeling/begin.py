"""Begin: a first known activation that determines everything behind it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gifd.errors import UnexplainedError
from gifd.leakage.peeling.circuit import Pass, Read
from gifd.leakage.peeling.doubts import ROUNDS, corrected
from gifd.leakage.peeling.first import shown_by
from gifd.leakage.peeling.replay import Replay
from gifd.leakage.peeling.system import System

_log = logging.getLogger("gifd")

EXPLAINED = 0.99
"""Least cosine similarity between the first layer's gradient and what its input makes of it."""
AWAY = 1e-4
"""Largest relative residual of an input solved for behind the first one."""


class Begun(NamedTuple):
    """A first value.

    Args:
        number: of the activation.
        measured: its output, the images in the order of the labels.
        weight: of the layer that showed it.
        gradient: the observed one, at the scale of a replayed one.
    """

    number: int
    measured: Tensor
    weight: str
    gradient: dict[str, Tensor]


class _Candidate(NamedTuple):
    number: int
    measured: Tensor
    weight: str
    slopes: Tensor


def begin(
    replay: Replay,
    gradient: Mapping[str, Tensor],
    labels: Shaped[Tensor, "B *T"],
    rng: torch.Generator,
) -> Begun:
    """Find an activation that some layer's gradient shows and that explains this gradient.

    Args:
        replay: of the victim.
        gradient: of every parameter, float64.
        labels: of the private images.
        rng: see `gifd.leakage.peeling.mixtures.separation`.

    Raises:
        UnexplainedError: there is none.
    """
    best = -math.inf
    for found in _candidates(replay, gradient, len(labels), rng):
        ordered = _ordered(replay, found, labels)
        alike, scale = _alike(replay, ordered, gradient, labels)
        _log.debug("peel: %s shows its input, cosine %.9f", ordered.weight, alike)
        if alike > EXPLAINED:
            scaled = {name: tensor / scale for name, tensor in gradient.items()}
            return Begun(ordered.number, ordered.measured, ordered.weight, scaled)
        best = max(best, alike)
    if math.isfinite(best):
        raise UnexplainedError(
            "expected a gradient that follows from the input that it shows, got a cosine "
            f"similarity of {best:.3f}: the labels, defences or protocol are not as believed, or "
            "the model computes something between its layers; use another attack"
        )
    raise UnexplainedError(
        "expected a layer whose gradient shows its input (a 3x3 convolution of stride 1 with "
        "fewer positions in the batch than channels, or a head behind an activation), got none "
        "that fits this update (it may be defended, rounded, or of several local steps): use "
        "another attack"
    )


def _candidates(
    replay: Replay, gradient: Mapping[str, Tensor], batch: int, rng: torch.Generator
) -> Iterator[_Candidate]:
    """Those on which all behind them depends; then those one layer before a layer that shows."""
    plain = replay.plain()
    readable = [
        (read, read.source)
        for read in plain.reads
        if read.source is not None and replay.visible(read.layer.weight) and plain.once(read)
    ]
    cutting = {number: replay.cuts(plain, number) for number in {n for _, n in readable}}
    for direct in (True, False):
        for read, number in readable:
            if cutting[number] is not direct:
                continue
            shown = shown_by(read, plain, gradient, batch, rng)
            if shown is None:
                continue
            value = shown.fed.reshape(plain.applied[number].after.shape)
            own = _Candidate(number, value, read.layer.weight, shown.slopes)
            if direct:
                yield own
            else:
                yield from _before(replay, plain, own, gradient, cutting)


def _before(
    replay: Replay,
    plain: Pass,
    found: _Candidate,
    gradient: Mapping[str, Tensor],
    cutting: Mapping[int, bool],
) -> Iterator[_Candidate]:
    """The inputs of the layers whose output goes through this layer alone: their slopes follow."""
    kind = plain.applied[found.number].kind
    value, doubt = kind.cleaned(found.measured), kind.doubtful(found.measured)

    def slopes(value: Tensor, which: int = 0) -> tuple[Pass, list[Tensor]]:
        return replay.slopes_behind({found.number: value}, found.weight, found.slopes, which)

    def solved(value: Tensor) -> list[tuple[Read, Tensor, System]]:
        unknown = replay.unknown(slopes(value), slopes(value, 1))
        systems = ((r, s, System.of([r], [s], gradient)) for r, s in unknown)
        return [(r, s, system) for r, s, system in systems if system is not None]

    for read in [read for read, _, _ in solved(value)]:
        number, own = read.source, value
        if number is None or not cutting.get(number, False):
            continue
        for _ in range(ROUNDS + 1):
            again = [(s, system) for r, s, system in solved(own) if r.layer == read.layer]
            if not again:
                break
            slope, system = again[0]
            switched = corrected(system, slopes, own, found.measured, doubt)
            if switched is None or switched is own:
                if system.away < AWAY:
                    fed = system.fed.reshape(plain.applied[number].after.shape)
                    yield _Candidate(number, fed, read.layer.weight, slope)
                break
            own = switched


def _ordered(replay: Replay, found: _Candidate, labels: Tensor) -> _Candidate:
    """The images in the order of the labels: each label would give other slopes."""
    batch = len(labels)
    if batch == 1:
        return found
    cost = torch.zeros(batch, batch)
    for place, label in enumerate(labels):
        slopes = _own(replay, found, label.expand(batch, *label.shape))[1]
        alike = torch.cosine_similarity(slopes.flatten(1), found.slopes.flatten(1), dim=1)
        cost[:, place] = -alike.cpu()
    images, places = linear_sum_assignment(cost.numpy())
    order = torch.from_numpy(images[places.argsort()]).to(labels.device)
    return found._replace(measured=found.measured[order], slopes=found.slopes[order])


def _alike(
    replay: Replay, found: _Candidate, gradient: Mapping[str, Tensor], labels: Tensor
) -> tuple[float, float]:
    """Cosine similarity of the observed gradient and the replayed one, and the ratio of sizes."""
    own, seen = _own(replay, found, labels)[0].flatten(), gradient[found.weight].flatten()
    alike = float(torch.cosine_similarity(seen, own, dim=0))
    return alike, float((seen @ own) / own.square().sum().clamp_min(1e-300))


def _own(replay: Replay, found: _Candidate, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The replayed gradient of the layer that showed the value, and its slopes."""
    made, slopes = replay.slopes({found.number: found.measured}, labels)
    read, slope = next(
        (r, s) for r, s in zip(made.reads, slopes, strict=True) if r.layer.weight == found.weight
    )
    return read.layer.gradient(read.fed.detach(), slope), slope
