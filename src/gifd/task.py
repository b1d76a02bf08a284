"""Task: what a model's outputs are compared with, found by trying its loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from gifd.errors import InputError, ModelError, one_line


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """The shapes of a model's outputs and targets, and the kind of its targets.

    Targets are whole numbers below `classes`, one per image or one per place of its map, as of
    cross-entropy; or numbers, as of binary cross-entropy (several labels an image) or regression.

    Args:
        outputs: shape of one image's: (N,), (N, H, W), or () if the model leaves out the axis.
        targets: shape of one image's: () or (H, W) for classes; of numbers that of the outputs.
        numbers: whether targets are numbers.
    """

    outputs: tuple[int, ...]
    targets: tuple[int, ...]
    numbers: bool

    @property
    def classes(self) -> int:
        """The number of outputs for each image or place; two if a single output tells two."""
        return max(self.outputs[0] if self.outputs else 1, 1 if self.numbers else 2)

    @property
    def plain(self) -> bool:
        """Whether each image has one class."""
        return not self.numbers and not self.targets

    def zeros(self, batch: int, like: Tensor) -> Shaped[Tensor, "B *T"]:
        """Targets of zeros on a tensor's device, numbers in its type."""
        kind = like.dtype if self.numbers else torch.long
        return torch.zeros(batch, *self.targets, dtype=kind, device=like.device)

    def drawn(self, batch: int, rng: torch.Generator, like: Tensor) -> Shaped[Tensor, "B *T"]:
        """Random targets: classes, or numbers in [0, 1]."""
        if self.numbers:
            return torch.rand(batch, *self.targets, generator=rng).to(like)
        drawn = torch.randint(self.classes, (batch, *self.targets), generator=rng)
        return drawn.to(like.device)

    def check(self, targets: Tensor, what: str = "labels") -> None:
        """Check targets of a batch.

        Raises:
            InputError: another kind or shape, classes that there are not, or numbers not finite.
        """
        shape = ", ".join(["B", *map(str, self.targets)]) + ("," if not self.targets else "")
        floating = targets.is_floating_point()
        if floating != self.numbers or targets.shape[1:] != self.targets or targets.is_complex():
            wanted = "numbers" if self.numbers else "whole numbers (.long())"
            raise InputError(
                f"expected {what} as {wanted} of shape ({shape}), which the model's loss takes, "
                f"got {str(targets.dtype).removeprefix('torch.')} {tuple(targets.shape)}"
            )
        if self.numbers and not bool(targets.isfinite().all()):
            raise InputError(f"expected {what} that are finite, got others")
        if not self.numbers and (int(targets.min()) < 0 or int(targets.max()) >= self.classes):
            raise InputError(
                f"expected {what} from 0 to {self.classes - 1} (the model has {self.classes} "
                f"classes), got {one_line(targets.tolist(), 60)}"
            )


def task_of(outputs: Tensor, loss: Callable[[Tensor, Tensor], object]) -> Task:
    """The task of a loss of these outputs (B, ...): the first kind of targets that it takes.

    In the order: a class per image, a class per place, numbers of the outputs' shape. One that it
    takes with a warning, such as that of a shape that is broadcast, counts as not taken.

    Raises:
        ModelError: it takes none of them.
    """
    shape = tuple(outputs.shape[1:])
    tries = [Task(outputs=shape, targets=(), numbers=False)] if len(shape) == 1 else []
    tries += [Task(outputs=shape, targets=shape[1:], numbers=False)] if len(shape) > 1 else []
    tries += [Task(outputs=shape, targets=shape, numbers=True)]
    problem = "none"
    for task in tries:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("error")
                loss(outputs, task.zeros(len(outputs), outputs))
        except Exception as error:  # of the user's loss
            problem = one_line(error) or type(error).__name__
            continue
        return task
    raise ModelError(
        "expected a loss of the outputs and labels: whole numbers (B,) or (B, H, W), or numbers "
        f"shaped like the outputs (B, {', '.join(map(str, shape))}), got: {problem}"
    )


def differ(labels: Shaped[Tensor, "B *T"]) -> Bool[Tensor, "B B"]:
    """Which pairs of images have different targets."""
    flat = labels.reshape(len(labels), -1)
    return (flat[:, None] != flat).any(2)
