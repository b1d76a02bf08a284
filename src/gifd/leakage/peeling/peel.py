"""Peel: the values inside the victim, from the output towards the image."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import UnexplainedError
from gifd.leakage.peeling.circuit import Circuit, Known, Pass, Read
from gifd.leakage.peeling.first import Shown, shown_by
from gifd.leakage.peeling.layers import Convolution, Layer
from gifd.leakage.peeling.system import System

_log = logging.getLogger("gifd")

EXPLAINED = 0.99
"""Least cosine similarity between the first layer's gradient and what its input makes of it."""
AWAY = 1e-5
"""Largest relative residual of a solved system, if the first one's is not a tenth of it: one wrong
value leaves more."""
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

    1. Some layer's gradient alone shows its input (`gifd.leakage.peeling.first`). The layers
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
    peeling.begin()
    while peeling.step():
        pass
    return peeling.result()


@final
class _Peeling:
    """The state of `peel`."""

    def __init__(self, observation: Observation, labels: Tensor) -> None:
        self.observation = observation
        self.circuit = Circuit(observation.model)
        self.labels = labels.to(self.circuit.device)
        sent = observation.protocol.as_gradient(observation.update)
        self.gradient = {n: t.to(self.circuit.device).double() for n, t in sent.items()}
        self.rng = torch.Generator().manual_seed(0)
        shape = (len(labels), *observation.ledger.image_shape)
        self.shown = [self._drawn(*shape).requires_grad_() for _ in range(2)]
        self.known: dict[int, Tensor] = {}
        self.measured: dict[int, Tensor] = {}
        self.doubts: dict[int, Tensor] = {}
        self.refused: set[int | None] = set()
        self.left: list[Left] = []
        self.frontier: tuple[int, ...] = ()
        self.image: Tensor | None = None
        self.depth = ""
        self.away, self.before = 0.0, math.inf

    def result(self) -> Peeled:
        """What is known."""
        return Peeled(
            circuit=self.circuit,
            known=self.known,
            frontier=self.frontier,
            left=tuple(self.left),
            image=self.image,
            depth=self.depth,
            shape=tuple(self.shown[0].shape),
        )

    def _drawn(self, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=self.rng, dtype=torch.float64)
        return drawn.to(self.circuit.device)

    # -- the first value ---------------------------------------------------------------

    def begin(self) -> None:
        """Find it, order its images by the labels, and check that it explains its gradient.

        Raises:
            UnexplainedError: there is none.
        """
        plain, _ = self.circuit.run(self.shown[0], {})
        best = 0.0
        for read in plain.reads:
            source, name = read.source, read.layer.weight
            if source is None or not self._shows(name) or not self._cuts(plain, source):
                continue
            shown = shown_by(read, plain, self.gradient, len(self.labels), self.rng)
            if shown is None:
                continue
            shown = self._ordered(plain, read, source, shown)
            self._learn(plain, source, name, shown.fed)
            alike = self._scaled(name)
            if alike > EXPLAINED:
                return
            best = max(best, alike)
            self._forget()
        if best:
            raise UnexplainedError(
                "expected a gradient that follows from the input that it shows, got a cosine "
                f"similarity of {best:.3f}: the labels, the defences or the protocol are not as "
                "believed; use another attack"
            )
        raise UnexplainedError(
            "expected a layer whose gradient shows its input (a 3x3 convolution of stride 1 with "
            "fewer positions in the batch than channels, or a head behind an activation), got none "
            "that fits this update (it may be defended, rounded, or of several local steps): use "
            "another attack"
        )

    def _shows(self, name: str) -> bool:
        hidden = self.observation.protocol.shown(name)
        return hidden is None or bool((hidden != 0).all())

    def _cuts(self, plain: Pass, number: int) -> bool:
        """Whether the logits depend on the image through this activation only."""
        value = self._drawn(*plain.applied[number].after.shape)
        one, other = (self.circuit.run(shown, {number: value})[1] for shown in self.shown)
        return one is not None and other is not None and torch.equal(one, other)

    def _ordered(self, plain: Pass, read: Read, source: int, shown: Shown) -> Shown:
        """The images in the order of the labels: each label would give other slopes."""
        batch, name = len(self.labels), read.layer.weight
        if batch == 1:
            return shown
        applied = plain.applied[source]
        self.known[source] = applied.kind.cleaned(shown.fed.reshape(applied.after.shape))
        cost = torch.zeros(batch, batch)
        for place, label in enumerate(self.labels):
            made, slopes = self._slopes(self.shown[0], label.expand(batch))
            own = next(s for r, s in zip(made.reads, slopes, strict=True) if r.layer.weight == name)
            alike = torch.cosine_similarity(own.flatten(1), shown.slopes.flatten(1), dim=1)
            cost[:, place] = -alike.cpu()
        images, places = linear_sum_assignment(cost.numpy())
        order = torch.from_numpy(images[places.argsort()]).to(self.circuit.device)
        return Shown(shown.fed[order], shown.slopes[order])

    def _scaled(self, name: str) -> float:
        """Bring the observed gradient to the scale of the replayed one, e.g. after clipping.

        Returns:
            their cosine similarity at this layer.
        """
        made, slopes = self._slopes(self.shown[0], self.labels)
        read, slope = next(
            (r, s) for r, s in zip(made.reads, slopes, strict=True) if r.layer.weight == name
        )
        own = read.layer.gradient(read.fed.detach(), slope).flatten()
        seen = self.gradient[name].flatten()
        alike = float(torch.cosine_similarity(seen, own, dim=0))
        _log.debug("peel: begins at %s, cosine %.9f", name, alike)
        if alike > EXPLAINED:
            scale = float((seen @ own) / own.square().sum())
            self.gradient = {name: tensor / scale for name, tensor in self.gradient.items()}
        return alike

    # -- from layer to layer ---------------------------------------------------------------

    def step(self) -> bool:
        """Solve for one more input; False if there is none."""
        (made, one), (again, two) = (self._slopes(shown, self.labels) for shown in self.shown)
        unknown = [
            (read, slope)
            for read, other, slope, same in zip(made.reads, again.reads, one, two, strict=True)
            if not torch.equal(read.fed, other.fed)  # else it is known
            and torch.allclose(slope, same, rtol=1e-9, atol=0)  # else it depends on the unknown
            and self._shows(read.layer.weight)
        ]
        self.left = [
            Left(layer=read.layer, slopes=slope, gradient=self.gradient[read.layer.weight])
            for read, slope in unknown
        ]
        pairs = list(zip(made.applied, again.applied, strict=True))
        self.frontier = tuple(
            number for number in self.known if not torch.equal(*(a.before for a in pairs[number]))
        )
        image = self.observation.model.normalize(self.shown[0])
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
        if system.away < 0.9 * self.before and self._correct(system, reads):
            self.before = system.away
            return True
        self.before, name = math.inf, reads[0].layer.weight
        _log.debug("peel: input of %s to %.1e, condition %.0f", name, system.away, system.condition)
        self.away = self.away or max(AWAY, 10 * system.away)
        if not system.away < self.away:
            self.refused.add(source)
            return True
        self.depth = name
        if source is None:
            self.image = self.observation.model.denormalize(system.fed)
        else:
            self._learn(made, source, name, system.fed)
        return True

    def _forget(self) -> None:
        for each in (self.known, self.measured, self.doubts):
            each.clear()

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
        sizes = missing.abs().masked_fill(~wrong, 0)
        index = tuple(places[sizes > 0.5 * sizes.max()].T)
        measured = self.measured[number][index].clamp_min(1e-30)
        value[index] = torch.where(value[index] > 0, 0, measured)
        _log.debug("peel: %d doubtful values corrected", len(index[0]))
        return True

    def _with(self, number: int, doubt: Tensor, tiny: float) -> tuple[Pass, list[Tensor]]:
        """A pass in which all doubtful values are tiny, or 0."""
        value = self.known[number]
        self.known[number] = torch.where(doubt, tiny, value)
        try:
            return self._slopes(self.shown[0], self.labels)
        finally:
            self.known[number] = value

    def _slopes(self, shown: Tensor, labels: Tensor) -> tuple[Pass, list[Tensor]]:
        """A pass with what is known, and the slopes of every layer's output."""
        made, logits = self.circuit.run(shown, self.known)
        assert logits is not None
        loss = self.observation.model.loss(logits, labels)
        results = [read.result for read in made.reads]
        return made, list(
            torch.autograd.grad(loss, results, materialize_grads=True, allow_unused=True)
        )
