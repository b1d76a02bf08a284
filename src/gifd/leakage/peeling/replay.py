"""Replay: passes of two random images, forwards and backwards, with known values put in.

What is equal in both passes does not depend on the image: it follows from what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from gifd.errors import ModelError, one_line
from gifd.leakage.peeling.circuit import Circuit, Known, Pass, Read
from gifd.model import Loss


@final
class Replay:
    """The victim, its loss, and two random batches.

    Args:
        circuit: the victim, float64.
        loss: of the logits.
        shape: (B, C, H, W).
        rng: draws the images.
        visible: whether the whole update of a parameter depends on the images.
    """

    def __init__(
        self,
        circuit: Circuit,
        loss: Loss,
        shape: Sequence[int],
        rng: torch.Generator,
        visible: Callable[[str], bool],
    ) -> None:
        self.circuit, self.visible = circuit, visible
        self._loss, self._rng = loss, rng
        self.shown = [self._drawn(shape).requires_grad_() for _ in range(2)]

    def _drawn(self, shape: Sequence[int]) -> Tensor:
        drawn = torch.rand(tuple(shape), generator=self._rng, dtype=torch.float64)
        return drawn.to(self.circuit.device)

    def plain(self) -> Pass:
        """A pass in which nothing is known.

        Raises:
            ModelError: the victim computes something else when it is recorded.
        """
        made, logits = self.circuit.run(self.shown[0], {})
        with torch.no_grad():
            model, shown = self.circuit.model, self.shown[0]
            true = model.logits(model.parameters, model.buffers, shown.to(model.device).float())
        assert logits is not None
        logits = logits.detach()
        away = logits - true.to(logits)
        if not float(away.norm()) <= 0.01 * float(logits.norm()):
            raise ModelError(
                "expected a model without activations in place whose result is not used, got one: "
                "write x = relu(x), or use another attack"
            )
        return made

    def cuts(self, plain: Pass, number: int) -> bool:
        """Whether the logits depend on the image only through this activation."""
        value = self._drawn(plain.applied[number].after.shape)
        one, other = (self.circuit.run(shown, {number: value})[1] for shown in self.shown)
        return one is not None and other is not None and torch.equal(one, other)

    def slopes(
        self, known: Known, labels: Shaped[Tensor, "B *T"], which: int = 0
    ) -> tuple[Pass, list[Tensor]]:
        """A pass, and the slopes of the output of each of its layers.

        Args:
            known: values to put in.
            labels: of the loss.
            which: image to pass.
        """
        made, logits = self.circuit.run(self.shown[which], known)
        assert logits is not None
        try:
            loss = self._loss(logits, labels)
        except Exception as error:
            raise ModelError(
                f"expected a loss that takes float64, got: {one_line(error)}: use another attack"
            ) from None
        return made, _gradients(loss, made, None)

    def slopes_behind(
        self, known: Known, weight: str, slopes: Tensor, which: int = 0
    ) -> tuple[Pass, list[Tensor]]:
        """The same, as far as they come through one layer whose slopes are given.

        Args:
            known: values to put in.
            weight: of the layer.
            slopes: of its output.
            which: image to pass.
        """
        made, _ = self.circuit.run(self.shown[which], known)
        result = next(read.result for read in made.reads if read.layer.weight == weight)
        return made, _gradients(result, made, slopes)

    def unknown(
        self, one: tuple[Pass, list[Tensor]], other: tuple[Pass, list[Tensor]]
    ) -> list[tuple[Read, Tensor]]:
        """The layers, and their slopes, whose slopes are known and whose input is not.

        Args:
            one: passes of the first image.
            other: the same of the second one.
        """
        if [read.layer for read in one[0].reads] != [read.layer for read in other[0].reads]:
            raise ModelError(
                "expected a model whose layers do not depend on its input, got one whose do: use "
                "another attack"
            )
        pairs = zip(one[0].reads, other[0].reads, one[1], other[1], strict=True)
        return [
            (read, slope)
            for read, again, slope, same in pairs
            if one[0].once(read)
            and not torch.equal(read.fed, again.fed)
            and bool(slope.any())
            and torch.allclose(slope, same, rtol=1e-9, atol=0)
            and self.visible(read.layer.weight)
        ]


def _gradients(of: Tensor, made: Pass, slopes: Tensor | None) -> list[Tensor]:
    results = [read.result for read in made.reads]
    found = torch.autograd.grad(of, results, slopes, materialize_grads=True, allow_unused=True)
    return list(found)
