"""The estimators: each computes the counts from the head's gradient in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.leakage.counts.estimate import LabelEstimate
from gifd.leakage.counts.head_gradient import HeadGradient
from gifd.model import Model


class LabelEstimator(ABC):
    """A method to compute the label counts of an update."""

    @abstractmethod
    def __call__(self, observation: Observation) -> LabelEstimate:
        """The counts of the classes.

        Raises:
            InputError: the method does not apply to this batch or model.
            ModelError: no linear head, or a vanishing gradient.
        """


@final
@dataclass(frozen=True)
class Distinct(LabelEstimator):
    """The B classes whose weight rows have the smallest entries; no class may repeat.

    Behind a ReLU the input of the head is not negative, so only a class in the batch has a
    negative entry.

    Source: Yin et al., See through Gradients, CVPR 2021, Eq. 6.
    """

    def __call__(self, observation: Observation) -> LabelEstimate:
        """Ones and zeros."""
        seen = HeadGradient.of(observation)
        if seen.batch > len(seen.weight):
            raise InputError(
                f"expected at most {len(seen.weight)} images, as no label may repeat, got "
                f"{seen.batch}: choose another estimator"
            )
        shares = torch.zeros(len(seen.weight), dtype=torch.float64)
        shares[seen.weight.min(1).values.argsort()[: seen.batch]] = 1
        return LabelEstimate.of(shares, seen.batch)


@final
@dataclass(frozen=True)
class Impact(LabelEstimator):
    """Each label lowers the sum of its row by an impact m, estimated from the negative sums.

    `m = (1 + 1/N) / B sum_(g_i < 0) g_i`. Every class with a negative sum counts once. Then the
    class with the smallest remainder is counted repeatedly. No data is needed. The method assumes
    that m is the same for every image, which holds well for an untrained network.

    Source: Wainakh et al., User-Level Label Leakage from Gradients in Federated Learning (LLG),
    PoPETs 2022, Algorithm 1.

    Differs from the official code: it never returns more labels than images.
    """

    def __call__(self, observation: Observation) -> LabelEstimate:
        """Whole numbers; the confidence has no meaning."""
        seen = HeadGradient.of(observation)
        rest, classes = seen.sums.clone(), len(seen.weight)
        impact = float(rest.clamp_max(0).sum()) * (1 + 1 / classes) / seen.batch
        shares = torch.zeros(classes, dtype=torch.float64)
        present = [i for i in rest.argsort().tolist() if rest[i] < 0][: seen.batch]
        while len(present) < seen.batch or present:
            label = present.pop(0) if present else int(rest.argmin())
            shares[label] += 1
            rest[label] -= impact
            if int(shares.sum()) == seen.batch:
                break
        return LabelEstimate.of(shares, seen.batch)


@final
@dataclass(frozen=True, kw_only=True)
class DummyMean(LabelEstimator):
    """`c_i = B (p_i - b_i)`, p the mean softmax of random images; without a bias by row sums.

    Without a bias `c_i = B (p_i - g_i / S)`, S the mean sum of the head's input for these images.

    Args:
        images: the number of standard normal images.
        seed: of these images.

    Source: Geng et al., Towards General Deep Leakage in Federated Learning, 2021 (the row sums).
    """

    images: int = 256
    seed: int = 0

    def __call__(self, observation: Observation) -> LabelEstimate:
        """Shares that sum to B."""
        seen, model = HeadGradient.of(observation), observation.model
        rng, like = torch.Generator().manual_seed(self.seed), next(iter(model.parameters.values()))
        inputs = torch.randn(self.images, *observation.ledger.image_shape, generator=rng)
        fed = _fed(model, model.denormalize(inputs.to(like)))
        expected = seen.softmax(fed).mean(0)
        if seen.bias is not None:
            shares = seen.batch * (expected - seen.bias)
            return LabelEstimate.of(shares, seen.batch, seen.present)
        total = float(fed.sum(1).mean())
        return LabelEstimate.of(seen.batch * (expected - seen.sums / total), seen.batch)


@final
@dataclass(frozen=True)
class ClassEmbeddings(LabelEstimator):
    """Each class's mean representation from its own row, `a_i = W_i / b_i`, and its softmax.

    The counts solve `sum_j c_j p_i(a_j) - c_i = B b_i` for every i and `sum_j c_j = B` by least
    squares.

    Source: Ma et al., Instance-wise Batch Label Restoration via Gradients in Federated Learning
    (iLRG), ICLR 2023.

    Differs from the official code: the last rounding step, which corrects the sum, is ours.
    """

    def __call__(self, observation: Observation) -> LabelEstimate:
        """Needs a bias with a gradient that is not close to zero."""
        seen = HeadGradient.of(observation)
        if seen.bias is None:
            raise InputError(
                "expected a head with a bias, got none: choose an estimator that needs none"
            )
        tiny = torch.where(seen.bias < 0, -1e-12, 1e-12)
        safe = torch.where(seen.bias.abs() < 1e-12, tiny, seen.bias)
        share = seen.softmax(seen.weight / safe[:, None])  # (N, N): row j is class j's softmax
        classes = len(seen.weight)
        system = torch.cat([share.T - torch.eye(classes).double(), torch.ones(1, classes)])
        right = torch.cat([seen.batch * seen.bias, torch.tensor([float(seen.batch)])])
        shares = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:, 0]
        return LabelEstimate.of(shares.clamp(0, seen.batch), seen.batch, seen.present)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class AuxiliaryLeastSquares(LabelEstimator):
    """Least squares on the gradient that each class of the attacker's own images contributes.

    With `q_j` the mean of `p - [j]` over own images of class j (times S without a bias), at the
    parameters of the client's local steps, the counts are `argmin |sum_j c_j q_j - B b|^2` over
    `c >= 0`, `sum_j c_j = B`.

    Args:
        images: the attacker's own, in [0, 1].
        labels: their labels; every class must occur.

    Source: in the spirit of Chen and Vikalo, Recovering Labels from Local Updates in Federated
    Learning (RLU), ICML 2024. The local steps are assumed to lie on the line between the model
    sent and the model returned, both known to the server (`Protocol.visited`).
    """

    images: Float[Tensor, "M C H W"]
    labels: Int[Tensor, "M"]

    def __call__(self, observation: Observation) -> LabelEstimate:
        """Non-negative shares."""
        seen, model = HeadGradient.of(observation), observation.model
        classes = len(seen.weight)
        missing = sorted(set(range(classes)) - set(self.labels.tolist()))
        if missing:
            raise InputError(
                f"expected own images of each of the {classes} classes, got none of {missing}"
            )
        own = self.images.to(model.device)
        path = observation.protocol.visited(model.parameters, observation.update)
        columns = torch.stack([self._columns(observation, model.at(p), own) for p in path]).mean(0)
        observed = seen.sums if seen.bias is None else seen.bias
        scale = float(columns.abs().max())
        total = 1e3 * scale * torch.ones(1, classes, dtype=torch.float64)
        system = torch.cat([columns, total]) / scale
        right = torch.cat([seen.batch * observed, total[0, :1] * seen.batch]) / scale
        shares = torch.from_numpy(nnls(system.numpy(), right.numpy())[0])
        return LabelEstimate.of(shares, seen.batch, seen.present)

    def _columns(self, observation: Observation, model: Model, own: Tensor) -> Tensor:
        """(N, N): column j is q_j at these parameters."""
        there = HeadGradient.of(replace(observation, model=model))
        fed = _fed(model, own)
        residual = there.softmax(fed) - torch.eye(len(there.weight)).double()[self.labels]
        if there.bias is None:
            residual = residual * fed.sum(1, keepdim=True)
        classes = range(len(there.weight))
        return torch.stack([residual[self.labels == j].mean(0) for j in classes], 1)


def _fed(model: Model, images: Tensor, chunk: int = 64) -> Tensor:
    """(M, F): the inputs of the head for these images, in float64 on the CPU."""
    chunks = [images[first : first + chunk] for first in range(0, len(images), chunk)]
    with torch.no_grad():
        return torch.cat([model.representations(own) for own in chunks]).cpu().double()
