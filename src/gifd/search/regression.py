"""Regression: estimate the images from the input of the victim's head, before the search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.leakage.representation import Observed, observed_representations, representations
from gifd.search.following import following
from gifd.search.initializers import Beginning, Initializer
from gifd.search.ridge import Ridge
from gifd.search.sources import moved
from gifd.search.spaces import Draw
from gifd.search.standing import Standing, apart, flat


@final
@dataclass(frozen=True, kw_only=True)
class Regression(Initializer):
    """Begin at the variables that show a linear regression's estimate of the images.

    The update reveals the input of the head (`gifd.leakage.representation`). Samples of the
    prior are passed through the victim, forward only, each shifted by up to `shift` of its sides
    for private images that are framed differently. A ridge regression from the input of the head
    to the image, averaged down to at most `SIZE` pixels a side, is fitted to them. Applied to the
    private representation it gives a blurred estimate of the private image. Adam then takes
    `fit` steps on the generator alone, `min |down(images(h)) - estimate|^2`. Each search draws
    its own samples.

    A gradient of the matching distance takes a forward, a backward and a double backward pass,
    and costs as much as 13 to 18 samples (ResNet-18 and `faces64`, two cores). Ten samples are
    charged as one evaluation.

    Args:
        evaluations: ten samples each; fewer than three samples leave the searches as they are.
        shift: largest shift of a sample, as a share of its sides; edges are mirrored.
        fit: steps of Adam towards the estimate.
        lr: their learning rate.

    Source: ours; the idea that an attacker can learn to invert on its own data is due to Wu et
    al., Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning,
    UAI 2023.
    """

    evaluations: int = 1000
    shift: float = 0.0
    fit: int = 60
    lr: float = 0.05

    SAMPLES: ClassVar[int] = 10
    """Samples per evaluation."""
    SIZE: ClassVar[int] = 32
    AT_ONCE: ClassVar[int] = 64
    """Samples in one forward pass."""

    def __post_init__(self) -> None:
        if self.evaluations < 0 or not 0 <= self.shift < 1 or self.fit < 1 or not self.lr > 0:
            raise InputError(
                "expected a regression with evaluations >= 0, 0 <= shift < 1, fit >= 1 and "
                f"lr > 0, got evaluations={self.evaluations}, shift={self.shift}, "
                f"fit={self.fit}, lr={self.lr}"
            )

    def at_cost(self, evaluations: int) -> Initializer:
        """With samples for this many evaluations."""
        return replace(self, evaluations=evaluations)

    def __call__(self, beginning: Beginning) -> Standing:
        """The searches at the variables that show the estimates."""
        standing = beginning.entered(beginning.before)
        estimates = [
            self._estimates(beginning, standing.labels[n], n) for n in range(len(standing.alive))
        ]
        if any(each is None for each in estimates):
            return standing
        goals = torch.cat([each for each in estimates if each is not None])
        state = following(
            beginning.space,
            beginning.context,
            flat(standing.state),
            goals,
            steps=self.fit,
            lr=self.lr,
            small=self.small,
        )
        return replace(standing, state=apart(state, len(standing.alive)))

    def small(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C h w"]:
        """The images averaged down to the size of the regression's output."""
        height, width = images.shape[-2:]
        return F.adaptive_avg_pool2d(images, (min(height, self.SIZE), min(width, self.SIZE)))

    def _estimates(self, beginning: Beginning, labels: Tensor, n: int) -> Tensor | None:
        """(R, B, C, h, w) of image n; None if there are too few samples."""
        draw, restarts, batch = beginning.draws[n], *labels.shape
        inputs: list[Tensor] = []  # (samples, R, B, ...) each
        outputs: list[Tensor] = []
        left = self.evaluations * self.SAMPLES
        if left * batch < 3:
            return None
        while left > 0:
            several = min(left, max(1, self.AT_ONCE // (restarts * batch)))
            fed, shown = self._samples(beginning, draw, several)
            inputs.append(fed.reshape(several, restarts, batch, *fed.shape[1:]))
            outputs.append(shown.reshape(several, restarts, batch, *shown.shape[1:]))
            left -= several
        fed, shown = torch.cat(inputs).transpose(0, 1), torch.cat(outputs).transpose(0, 1)
        return torch.stack(
            [
                self._estimate(
                    fed[r].flatten(0, 1),
                    shown[r].flatten(0, 1),
                    observed_representations(beginning.observations[n], labels[r]),
                    draw.rng,
                )
                for r in range(restarts)
            ]
        )

    def _samples(self, beginning: Beginning, draw: Draw, several: int) -> tuple[Tensor, Tensor]:
        """Inputs of the head for `several` samples per search, and the samples averaged down."""
        context, space = beginning.context, beginning.space
        asked = None if draw.labels is None else draw.labels.repeat(several, 1)
        many = Draw(restarts=several * draw.restarts, rng=draw.rng, labels=asked)
        with torch.no_grad():
            shown = space.pictures(context, space.start(context, many)).flatten(0, 1)
            shown = moved(shown.clamp(0, 1), self.shift, draw.rng)
            return representations(context.model, shown), self.small(shown)

    def _estimate(
        self, inputs: Tensor, outputs: Tensor, observed: Observed, rng: torch.Generator
    ) -> Tensor:
        """(B, C, h, w): the estimate of the private images, averaged down.

        If the observed representations are partly hidden or noisy, each image has its own
        regression, fitted to samples with the same hidden parts and noise. More noise moves the
        estimate towards the samples' mean.
        """
        flat_outputs = outputs.flatten(1)
        if observed.plain:
            guess = Ridge.fit(inputs, flat_outputs)(observed.directions)
        else:
            guess = torch.cat(
                [
                    Ridge.fit(observed.as_seen(image, inputs, rng), flat_outputs)(direction[None])
                    for image, direction in enumerate(observed.directions)
                ]
            )
        return guess.view(-1, *outputs.shape[1:]).clamp(0, 1)
