"""Peel: the values inside the victim, from the output towards the image."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.leakage.peeling.begin import begin
from gifd.leakage.peeling.circuit import Circuit, Known, Pass, Read
from gifd.leakage.peeling.layers import Convolution, Layer
from gifd.leakage.peeling.replay import Replay
from gifd.leakage.peeling.system import System

_log = logging.getLogger("gifd")

AWAY = 1e-5
"""Largest relative residual of a solved system, if the first one's is not a tenth of it: one wrong
value leaves more."""
ROUNDS = 8
"""Times that doubtful values of one layer are corrected."""
DOUBTS = 300
"""Doubtful values that are judged together: those that explain the residual best."""


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


def peel(observation: Observation, labels: Int[Tensor, "B"]) -> Peeled:
    """Solve for the values inside the victim, layer by layer.

    1. Some layer's gradient alone shows its input (`gifd.leakage.peeling.begin`). The layers
       behind it can then be computed, and with them the slopes at every layer up to it.
    2. With known slopes, the gradient of a weight is linear in its layer's input. If there are
       enough equations, this input is solved for; so are the slopes of the next layer, and so on.
    3. A ReLU's derivative jumps at 0, so a wrong sign of a tiny value spoils all that follows.
       Doubtful ones are part of the solution (`System.missing`).

    It ends where the equations do not suffice.

    Args:
        observation: the update, and the attacker's beliefs.
        labels: of the private images.

    Raises:
        UnexplainedError: no layer's gradient alone shows its input, or this input does not explain
            the gradient.

    Source: ours. The recursion from the output to the image is that of Zhu and Blaschko, R-GAP:
    Recursive Gradient Attack on Privacy, ICLR 2021, which solves for inputs layer by layer where
    activations can be inverted and one image was used.
    """
    peeling = _Peeling(observation, labels)
    while peeling.step():
        pass
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
        sent = protocol.as_gradient(observation.update)
        gradient = {n: t.to(self.circuit.device).double() for n, t in sent.items()}
        first = begin(self.replay, gradient, self.labels, rng)
        self.gradient = first.gradient
        self.known: dict[int, Tensor] = {}
        self.measured: dict[int, Tensor] = {}
        self.doubts: dict[int, Tensor] = {}
        self.refused: set[int | None] = set()
        self.left: list[Left] = []
        self.frontier: tuple[int, ...] = ()
        self.image: Tensor | None = None
        self.away, self.rounds = 0.0, 0
        self._learn(self.replay.plain(), first.number, first.weight, first.measured)

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
        self.depth = name
        if source is None:
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
        for number, doubt in list(self.doubts.items()):
            alike = [
                read
                for read in reads
                if read.result.shape == doubt.shape and read.layer.weight in system.blocks
            ]
            if not alike or not bool(doubt.any()):
                continue
            (made, on), (_, off) = (self._with(number, doubt, tiny) for tiny in (1e-30, 0.0))
            changes = {
                read.layer.weight: (read.layer, s - t)
                for read, s, t in zip(made.reads, on, off, strict=True)
            }
            for read in alike:
                layer, change = changes[read.layer.weight]
                if not isinstance(layer, Convolution) or bool((change[~doubt] != 0).any()):
                    continue
                if self._switched(system, layer, number, change):
                    return True
                del self.doubts[number]
                break
        return False

    def _switched(self, system: System, layer: Convolution, number: int, change: Tensor) -> bool:
        """Switch those values, between 0 and what was measured, whose slopes are wrong."""
        doubt, value = self.doubts[number], self.known[number]
        places = system.suspects(layer, change, value > 0, doubt, DOUBTS)
        index = tuple(places.T)
        missing = system.missing(layer, places, change[index])
        is_on = value[index] > 0
        wrong = torch.where(is_on, -missing, missing) > 0.5
        if not bool(wrong.any()):
            return False
        index = tuple(places[wrong].T)
        measured = self.measured[number][index].clamp_min(1e-30)
        value[index] = torch.where(value[index] > 0, 0, measured)
        _log.debug("peel: %d doubtful values corrected", len(index[0]))
        return True

    def _with(self, number: int, doubt: Tensor, tiny: float) -> tuple[Pass, list[Tensor]]:
        """A pass in which all doubtful values are tiny, or 0."""
        value = torch.where(doubt, tiny, self.known[number])
        return self.replay.slopes({**self.known, number: value}, self.labels)
