"""Regression: the images guessed from what entered the victim's head, before any gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from gifd.errors import InputError
from gifd.leakage.representation import Observed
from gifd.search.optimizers import Evaluate, Optimizer, Task, Variables
from gifd.search.ridge import Ridge


@final
@dataclass(frozen=True, kw_only=True)
class Regression(Optimizer):
    """Guess the images from what entered the victim's head, then the variables that show them.

    The update tells what entered the head (`gifd.leakage.representation`). Every step but the first
    and the last sends `draws` samples of the prior through the victim, forwards only, each moved
    by up to `shift` of its sides where private images are not framed like the prior's. In the
    last step a ridge line from what enters the head to the image, averaged down to at most
    `SIZE` pixels a side, is fitted to the samples and read at the private representation: a
    blurred estimate of the private image. The variables then follow Adam for `fit` steps of
    the generator alone, `min |down(images(h)) - estimate|^2`. Each restart draws for itself. The
    phase must keep the last iterate (`Phase(keeps="last")`): a guess may be better than the first
    draw and yet have a larger distance.

    A gradient of the matching distance is a forward, a backward and a double backward pass, and
    costs as much as 13 to 18 samples (ResNet-18 and `faces64`, two cores); so a step of ten is
    charged as one evaluation.

    Args:
        draws: samples a step.
        shift: how far a sample is moved at most, as a share of its sides; edges are mirrored.
        fit: steps of Adam to the estimate.
        lr: their learning rate.

    Source: ours; the idea that an attacker can learn to invert on its own data is of Wu et al.,
    Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in Federated Learning,
    UAI 2023.
    """

    draws: int = 10
    shift: float = 0.0
    fit: int = 60
    lr: float = 0.05

    gradients = False

    SIZE: ClassVar[int] = 32

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 <= self.shift < 1 or self.fit < 1 or self.lr <= 0:
            raise InputError(
                "expected a regression with draws >= 1, 0 <= shift < 1, fit >= 1 and lr > 0, got "
                f"draws={self.draws}, shift={self.shift}, fit={self.fit}, lr={self.lr}"
            )

    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """Fewer than three samples, as of two steps or less, leave the variables as drawn."""
        restarts = len(next(iter(variables.values())))
        examples: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(restarts)]
        done = 0

        def step(evaluate: Evaluate) -> None:
            nonlocal done
            done += 1
            if 1 < done < steps:
                for _ in range(self.draws):
                    fresh = task.draw()
                    for r, seen in enumerate(examples):
                        images = task.images(r, {n: t[r] for n, t in fresh.items()}).clamp(0, 1)
                        images = self.moved(images, task.rng)
                        seen.append((task.represent(images), self.small(images)))
                return
            if done == steps and sum(len(inputs) for inputs, _ in examples[0]) >= 3:
                for r, seen in enumerate(examples):
                    estimate = self._estimate(seen, task.observed(r), task.rng)
                    self._follow(r, variables, estimate, task)
            evaluate(variables)

        return step

    def moved(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Each image shifted by whole pixels, uniformly within what `shift` allows."""
        height, width = images.shape[-2:]
        y, x = int(self.shift * height), int(self.shift * width)
        padded = F.pad(images, (x, x, y, y), mode="reflect")
        tops = torch.randint(2 * y + 1, (len(images),), generator=rng).tolist()
        lefts = torch.randint(2 * x + 1, (len(images),), generator=rng).tolist()
        corners = zip(padded, tops, lefts, strict=True)
        return torch.stack(
            [each[:, top : top + height, left : left + width] for each, top, left in corners]
        )

    def small(self, images: Tensor) -> Tensor:
        """The images averaged down to what a line is asked for."""
        height, width = images.shape[-2:]
        return F.adaptive_avg_pool2d(images, (min(height, self.SIZE), min(width, self.SIZE)))

    def _estimate(
        self, seen: list[tuple[Tensor, Tensor]], observed: Observed, rng: torch.Generator
    ) -> Tensor:
        """(B, C, h, w): what the ridge says the private images are, averaged down.

        Where the observed representations are partly hidden or noisy, each image has a line of
        its own, learnt from samples that are hidden and disturbed alike: the more noise, the
        nearer is what it says to the samples' mean.
        """
        inputs, outputs = (torch.cat(part) for part in zip(*seen, strict=True))
        flat = outputs.flatten(1)
        if observed.plain:
            guess = Ridge.fit(inputs, flat)(observed.directions)
        else:
            guess = torch.cat(
                [
                    Ridge.fit(observed.as_seen(image, inputs, rng), flat)(direction[None])
                    for image, direction in enumerate(observed.directions)
                ]
            )
        return guess.view(-1, *outputs.shape[1:]).clamp(0, 1)

    def _follow(self, r: int, variables: Variables, estimate: Tensor, task: Task) -> None:
        """Move restart r to variables that show the estimate."""
        leaves = {n: v[r].detach().clone().requires_grad_() for n, v in variables.items()}
        adam = torch.optim.Adam(list(leaves.values()), lr=self.lr)
        for _ in range(self.fit):
            adam.zero_grad()
            loss = (self.small(task.images(r, leaves)) - estimate).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        for name, variable in variables.items():
            variable[r] = leaves[name].detach()
