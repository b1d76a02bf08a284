"""Peel: the values inside the victim, from the output towards the image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.leakage.peeling.begin import begin
from gifd.leakage.peeling.circuit import Circuit, Known, Pass, Read
from gifd.leakage.peeling.doubts import ROUNDS, corrected
from gifd.leakage.peeling.layers import Layer
from gifd.leakage.peeling.replay import Replay
from gifd.leakage.peeling.system import System

_log = logging.getLogger("gifd")

AWAY = 1e-5
"""Largest relative residual of a solved system, if the first one's is not a tenth of it: one wrong
value leaves more."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Left:
    """Equations that did not determine their layer's input: it has this weight's gradient.

    Args:
        layer: the layer.
        slopes: of its output.
        gradient: of its weight.
    """

    layer: Layer
    slopes: Tensor
    gradient: Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Peeled:
    """What is known inside the victim.

    Args:
        circuit: the victim.
        known: activations, float64, the images in the order of the labels.
        frontier: those of them that still depend on the image: it has to explain them.
        left: more equations that it has to fulfil.
        image: (B, C, H, W) in [0, 1], if even it was solved for.
        depth: name of the layer nearest to the image whose input is known.
        shape: (B, C, H, W).
    """

    circuit: Circuit
    known: Known
    frontier: tuple[int, ...]
    left: tuple[Left, ...]
    image: Float[Tensor, "B C H W"] | None
    depth: str
    shape: tuple[int, ...]


def peel(
    observation: Observation,
    labels: Shaped[Tensor, "B *T"],
    tell: Callable[[str, float], None] = lambda layer, share: None,
) -> Peeled:
    """Solve for the values inside the victim, layer by layer.

    1. Some layer's gradient alone shows its input (`gifd.leakage.peeling.begin`). The layers
       behind it can then be computed, and with them the slopes at every layer up to it.
    2. With known slopes, the gradient of a weight is linear in its layer's input. If there are
       enough equations, this input is solved for; so are the slopes of the next layer, and so on.
    3. A ReLU's derivative jumps at 0, so a wrong sign of a tiny value spoils all that follows.
       Doubtful ones are part of the solution (`gifd.leakage.peeling.doubts`).

    It ends where the equations do not suffice.

    Args:
        observation: the update, and the attacker's beliefs.
        labels: of the private images.
        tell: called with the name of each layer whose input is known, and the share of the
            activations that are.

    Raises:
        UnexplainedError: no layer's gradient alone shows its input, or this input does not explain
            the gradient.

    Source: ours. The recursion from the output to the image is that of Zhu and Blaschko, R-GAP:
    Recursive Gradient Attack on Privacy, ICLR 2021, which solves for inputs layer by layer where
    activations can be inverted and one image was used.
    """
    peeling = _Peeling(observation, labels)
    tell(peeling.depth, peeling.share)
    while peeling.step():
        tell(peeling.depth, peeling.share)
    return peeling.result()


@final
class _Peeling:
    """The state of `peel`."""

    def __init__(self, observation: Observation, labels: Tensor) -> None:
        self.model, protocol = observation.model, observation.protocol
        self.circuit = Circuit(self.model)
        self.labels = labels.to(self.circuit.device)
        self.shape = (len(labels), *observation.ledger.image_shape)

        def visible(name: str) -> bool:
            hidden = protocol.shown(name)
            return hidden is None or bool((hidden != 0).all())

        rng = torch.Generator().manual_seed(0)
        self.replay = Replay(self.circuit, self.model.loss, self.shape, rng, visible)
        sent = observation.gradient
        gradient = {n: t.to(self.circuit.device).double() for n, t in sent.items()}
        first = begin(self.replay, gradient, self.labels, rng)
        self.gradient = first.gradient
        self.known: dict[int, Tensor] = {}
        self.measured: dict[int, Tensor] = {}
        self.doubts: dict[int, Tensor] = {}
        self.corrections: dict[int, tuple[float, Tensor]] = {}
        self.refused: set[int | None] = set()
        self.left: list[Left] = []
        self.frontier: tuple[int, ...] = ()
        self.image: Tensor | None = None
        self.away, self.rounds = 0.0, 0
        plain = self.replay.plain()
        self.activations = len(plain.applied)
        self._learn(plain, first.number, first.weight, first.measured)

    def result(self) -> Peeled:
        """What is known."""
        return Peeled(
            circuit=self.circuit,
            known=self.known,
            frontier=self.frontier,
            left=tuple(self.left),
            image=self.image,
            depth=self.depth,
            shape=self.shape,
        )

    @property
    def share(self) -> float:
        """Of the victim's activations that are known."""
        return len(self.known) / self.activations

    def step(self) -> bool:
        """Solve for one more input, or correct values; False if there is nothing to do."""
        one, other = (self.replay.slopes(self.known, self.labels, which) for which in (0, 1))
        unknown = self.replay.unknown(one, other)
        self.left = [
            Left(layer=read.layer, slopes=slope, gradient=self.gradient[read.layer.weight])
            for read, slope in unknown
        ]
        made, again = one[0], other[0]
        self.frontier = tuple(
            number
            for number in self.known
            if not torch.equal(made.applied[number].before, again.applied[number].before)
        )
        image = self.model.normalize(self.replay.shown[0])
        groups: dict[int | None, list[tuple[Read, Tensor]]] = {}
        for read, slope in unknown:
            if read.source is not None or (
                read.fed.shape == image.shape and torch.equal(read.fed, image)
            ):
                groups.setdefault(read.source, []).append((read, slope))
        for source, group in groups.items():
            if source not in self.refused and self._solve(made, source, group):
                return self.image is None
        return False

    def _solve(self, made: Pass, source: int | None, group: list[tuple[Read, Tensor]]) -> bool:
        """Solve for what these layers read, or correct a doubtful value; False if neither."""
        reads, slopes = [read for read, _ in group], [slope for _, slope in group]
        system = System.of(reads, slopes, self.gradient)
        if system is None:
            return False
        if self.rounds < ROUNDS and self._correct(system, reads):
            self.rounds += 1
            return True
        self.rounds, name = 0, reads[0].layer.weight
        _log.debug("peel: input of %s to %.1e, condition %.0f", name, system.away, system.condition)
        self.away = self.away or max(AWAY, 10 * system.away)
        if not system.away < self.away:
            self.refused.add(source)
            return True
        if source is None:
            self.depth = name
            self.image = self.model.denormalize(system.fed)
        else:
            self._learn(made, source, name, system.fed)
        return True

    def _learn(self, made: Pass, number: int, name: str, fed: Tensor) -> None:
        applied = made.applied[number]
        measured = fed.reshape(applied.after.shape)
        self.known[number] = applied.kind.cleaned(measured)
        self.measured[number] = measured
        self.doubts[number] = applied.kind.doubtful(measured)
        self.depth = name

    def _correct(self, system: System, reads: list[Read]) -> bool:
        """Correct the doubtful values of the activations right behind these layers."""
        shapes = [read.result.shape for read in reads]
        for number, doubt in list(self.doubts.items()):
            if doubt.shape not in shapes:
                continue

            def slopes(value: Tensor, number: int = number) -> tuple[Pass, list[Tensor]]:
                return self.replay.slopes({**self.known, number: value}, self.labels)

            value, measured = self.known[number], self.measured[number]
            switched = corrected(system, slopes, value, measured, doubt)
            if switched is None:
                continue
            last = self.corrections.pop(number, None)
            if last is not None and system.away > 0.98 * last[0]:
                self.known[number] = last[1]  # what was switched explained nothing
                self.doubts[number] = doubt & (value == last[1])
                return True
            if switched is value:
                del self.doubts[number]
                continue
            self.corrections[number] = system.away, value
            self.known[number] = switched
            return True
        return False
