"""ATS: images transformed by policies that were selected to be hard to invert."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError
from gifd.federation.defenses.defense import Defense, Wrapped
from gifd.federation.defenses.transformations import TRANSFORMATIONS, transform
from gifd.federation.protocols import FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update

Policy = tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True)
class ATS(Defense):
    """Each image is transformed by a random one of the policies before anything is computed.

    A policy is a chain of transformations, given by their numbers (`TRANSFORMATIONS`). An adaptive
    attacker knows what was drawn for each image.

    Args:
        policies: `a-b-c+d-e-f`: chains separated by `+`. The default is the published hybrid for
            CIFAR-100; `search` finds others.
        seed: of the policy and the directions that are drawn for each image.

    Source: Gao et al., Privacy-Preserving Collaborative Learning with Automatic Transformation
    Search, CVPR 2021. The random crops and flips that its code applies first are omitted.
    """

    policies: str = "3-1-7+43-18-18"
    seed: int = 0

    inside = True

    def __post_init__(self) -> None:
        if not self.chains:
            raise InputError(f"expected policies like '3-1-7+43-18-18', got '{self.policies}'")

    @property
    def chains(self) -> list[Policy]:
        """The policies as numbers; empty if they cannot be read."""
        found = []
        for chain in self.policies.split("+"):
            numbers = chain.split("-")
            if not all(n.isdecimal() and int(n) < len(TRANSFORMATIONS) for n in numbers):
                return []
            found.append(tuple(int(n) for n in numbers))
        return found

    def drawn(self, seed: int) -> ATS:
        """With other policies and directions for each image."""
        return replace(self, seed=seed)

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Transform the images first."""
        return _Transformed(inner=protocol, ats=self)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The same."""
        return self.wrap(protocol, 0)

    def transformed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Each image, transformed by the policy drawn for its position in the batch."""
        rng, chains = random.Random(self.seed), self.chains
        return torch.stack([apply(image, rng.choice(chains), rng) for image in images])


def apply(
    image: Float[Tensor, "C H W"], policy: Policy, rng: random.Random
) -> Float[Tensor, "C H W"]:
    """One image through a chain, with random directions."""
    for number in policy:
        image = transform(image, number, rng.choice((1.0, -1.0)))
    return image


@dataclass(frozen=True, kw_only=True)
class _Transformed(Wrapped):
    ats: ATS

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The inner update of the transformed images."""
        return self.inner(model, parameters, buffers, self.ats.transformed(images), labels)

    def __repr__(self) -> str:
        return f"{self.ats!r} before {self.inner!r}"


# -- search ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A policy with its scores.

    Args:
        policy: the chain.
        privacy: S_pri of each class: how similar the gradient stays on the way from noise to the
            image; lower is more private.
        accuracy: S_acc: how different the images' Jacobians are; higher trains better.
    """

    policy: Policy
    privacy: tuple[float, ...]
    accuracy: float


def search(
    trained: Model,
    untrained: Model,
    images: Float[Tensor, "B C H W"],
    labels: Shaped[Tensor, "B *T"],
    *,
    candidates: int = 1500,
    length: int = 3,
    points: int = 20,
    least_accuracy: float = -85.0,
    seed: int = 0,
) -> list[Scored]:
    """Draw policies, score them, and return those that keep accuracy, the most private first.

    `S_pri = mean over t of cos(g(x_t), g(x))`, the mean over parameters, by the trapezoid rule,
    `x_t = (t / T) x + (1 - t / T) noise`, x the transformed image. `S_acc = -sum (log v + 1 / v)`
    over the eigenvalues v of the correlations between the images' input gradients. The order is
    by 0.7 of the mean and 0.3 of the variance of S_pri over the classes, each scaled to [0, 1].

    Args:
        trained: a model trained on some data, for S_pri.
        untrained: an untrained model, for S_acc.
        images: the searcher's own, in [0, 1].
        labels: theirs.
        candidates: policies to draw; about 1,500 in the paper.
        length: transformations in each.
        points: T.
        least_accuracy: minimum of S_acc.
        seed: of the draws.

    Source: Gao et al., CVPR 2021, as its code has it.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(candidates):
        policy = tuple(rng.randrange(len(TRANSFORMATIONS)) for _ in range(length))
        changed = torch.stack([apply(image, policy, rng) for image in images])
        accuracy = _accuracy(untrained, changed)
        if accuracy >= least_accuracy:
            privacy = _privacy(trained, changed, labels, points, seed)
            found.append(Scored(policy=policy, privacy=privacy, accuracy=accuracy))
    means = _scaled([statistics.fmean(scored.privacy) for scored in found])
    spreads = _scaled([statistics.pvariance(scored.privacy) for scored in found])
    order = sorted(range(len(found)), key=lambda i: 0.7 * means[i] + 0.3 * spreads[i])
    return [found[i] for i in order]


def _scaled(values: list[float]) -> list[float]:
    """To [0, 1]."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _privacy(
    model: Model, images: Tensor, labels: Tensor, points: int, seed: int
) -> tuple[float, ...]:
    rng = torch.Generator().manual_seed(seed)
    by_class: dict[int, list[float]] = {}
    for image, label in zip(images, labels, strict=True):
        goal = _gradient(model, image, label)
        noise = torch.rand(image.shape, generator=rng).to(image)
        alike = []
        for t in range(points + 1):
            on_the_way = _gradient(model, torch.lerp(noise, image, t / points), label)
            lengths = (goal.squares().sqrt() * on_the_way.squares().sqrt()).clamp_min(1e-30)
            alike.append(float((goal.dots(on_the_way) / lengths).mean()))
        area = sum(a + b for a, b in pairwise(alike)) / 2 / points
        by_class.setdefault(int(label), []).append(area)
    return tuple(statistics.fmean(areas) for areas in by_class.values())


def _gradient(model: Model, image: Tensor, label: Tensor) -> Update:
    batch, labels = image[None], label[None]
    return FedSGD()(model, model.parameters, model.buffers, batch, labels).detach()


def _accuracy(model: Model, images: Tensor) -> float:
    x = images.detach().clone().requires_grad_()
    total = model.logits(model.parameters, model.buffers, x).sum()
    (slopes,) = torch.autograd.grad(total, x)
    values = torch.linalg.eigvalsh(torch.corrcoef(slopes.flatten(1).double()))
    return float(-(torch.log(values + 1e-5) + 1 / (values + 1e-5)).sum())


def hybrid(best: Sequence[Scored], count: int = 2) -> ATS:
    """The defence that uses the most private policies."""
    chosen = best[:count]
    if not chosen:
        raise InputError("expected at least one policy that keeps accuracy, got none: draw more")
    return ATS(policies="+".join("-".join(map(str, scored.policy)) for scored in chosen))
