"""Inside: begin at the image that explains the values inside the victim."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError, UnexplainedError
from gifd.leakage.peeling import Circuit, Peeled, peel
from gifd.leaves import dead_leaves
from gifd.search.decoder import Decoder, decodable
from gifd.search.initializers import Beginning, Initializer, Tell
from gifd.search.spaces import Pixels
from gifd.search.standing import Standing

_log = logging.getLogger("gifd")


@final
@dataclass(frozen=True, kw_only=True)
class Inside(Initializer):
    """Begin where the victim's activations are those that the update reveals.

    `gifd.leakage.peeling.peel` solves for activations inside the victim. The image is found
    in two steps, with forward passes and first derivatives only:

    1. a linear decoder of one of these activations, learnt on random images of shapes
       (`gifd.leaves`), so no data is needed;
    2. from there, `steps` of Adam on the relative squared distance between the image's activations
       and the revealed ones, and on the equations that did not determine theirs.

    Without the first step the second one often ends in a local minimum. If no activation has a
    whole number of pixels for each position, it begins at the mean of the leaves.

    Cost in victim gradients: a step takes about a third, a leaf about a tenth.

    Args:
        evaluations: half for the decoder, with at most `LEAVES`, the rest for the steps.
        lr: Adam's learning rate, in normalised units.

    Source: ours; inverting activations by gradient descent is due to Mahendran and Vedaldi,
    Understanding Deep Image Representations by Inverting Them, CVPR 2015.
    """

    evaluations: int = 160
    lr: float = 0.1

    LEAVES: ClassVar[int] = 300
    DONE: ClassVar[float] = 1e-9
    """The steps end when the relative squared distance is below it."""

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not self.lr > 0:
            raise InputError(
                f"expected at least one evaluation and lr > 0, got {self.evaluations} and {self.lr}"
            )

    @property
    def leaves(self) -> int:
        """Images that the decoder learns from."""
        return min(self.LEAVES, max(5, 5 * self.evaluations))

    @property
    def steps(self) -> int:
        """Steps of Adam."""
        return max(1, 3 * (self.evaluations - self.leaves // 10))

    def at_cost(self, evaluations: int) -> Initializer:
        """With fewer leaves and steps."""
        return replace(self, evaluations=max(1, evaluations))

    def __call__(self, beginning: Beginning) -> Standing:
        """The searches at these images; those whose labels explain nothing stay where they are.

        Raises:
            UnexplainedError: the update does not reveal any.
            InputError: a space other than `Pixels`.
        """
        if not isinstance(beginning.space, Pixels):
            raise InputError(f"expected a search of pixels behind a peel, got {beginning.space}")
        standing = beginning.entered(beginning.before)
        (name,) = beginning.space.searched(beginning.context)
        inputs = standing.state[name].clone()
        searches, behind = standing.labels.shape[:2].numel(), 0
        for n, labellings in enumerate(standing.labels):
            found: dict[tuple[float, ...], Tensor] = {}
            refused: dict[tuple[float, ...], UnexplainedError] = {}
            for r, labels in enumerate(labellings):
                key = tuple(labels.flatten().tolist())

                def tell(doing: str, share: float, behind: int = behind) -> None:
                    beginning.tell(doing, (behind + share) / searches)

                if key not in found and key not in refused:
                    try:
                        tell("looks for a layer that shows its input", 0.0)
                        peeled = peel(
                            beginning.observations[n],
                            labels,
                            lambda layer, share: tell(f"input of {layer} is known", share / 2),
                        )
                        found[key] = self._images(peeled, beginning.draws[n].rng, tell)
                    except UnexplainedError as error:  # others may explain more
                        refused[key] = error
                behind += 1
                if key in found:
                    inputs[n, r] = beginning.context.model.normalize(found[key].to(inputs))
            if not found:
                raise next(iter(refused.values()))
        return replace(standing, state={**standing.state, name: inputs})

    def _images(self, peeled: Peeled, rng: torch.Generator, tell: Tell) -> Float[Tensor, "B C H W"]:
        if peeled.image is not None:
            return peeled.image.clamp(0, 1)
        if not peeled.frontier:
            raise UnexplainedError(
                "expected a model whose logits depend on the image, got one whose do not"
            )
        return _Explaining(peeled).images(self, rng, tell)


@final
class _Explaining:
    """The search for the image that explains what is known, in float32."""

    def __init__(self, peeled: Peeled) -> None:
        dtype = torch.float32
        self.circuit = Circuit(peeled.circuit.model, dtype)
        self.known = {number: value.to(dtype) for number, value in peeled.known.items()}
        self.frontier = peeled.frontier
        self.until = max(peeled.frontier)
        self.left = [(e.layer, e.slopes.to(dtype), e.gradient.to(dtype)) for e in peeled.left]
        self.shape = peeled.shape

    def images(self, how: Inside, rng: torch.Generator, tell: Tell) -> Tensor:
        model = self.circuit.model
        tell("learns to decode an activation", 0.5)
        images = self._decoded(how, rng)
        x = model.normalize(images).requires_grad_()
        adam = torch.optim.Adam([x], lr=how.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, how.steps)
        away = torch.inf
        for step in range(how.steps):
            shown = model.denormalize(x)
            total = self._away(shown)
            (x.grad,) = torch.autograd.grad(total, x)
            away = float(total.detach()) / len(x)
            tell(
                f"image {step + 1}/{how.steps}, unexplained {away:.1e}", (1 + step / how.steps) / 2
            )
            if away < how.DONE:
                break
            adam.step()
            schedule.step()
            with torch.no_grad():
                x.copy_(model.normalize(model.denormalize(x).clamp(0, 1)))
        _log.debug("peel: activations explained to %.1e", away)
        return model.denormalize(x.detach()).clamp(0, 1)

    def _decoded(self, how: Inside, rng: torch.Generator) -> Tensor:
        """Decode the known activation with the most numbers."""
        usable = [n for n in self.frontier if decodable(self.known[n], self.shape)]
        leaves = dead_leaves(how.leaves, self.shape[1:], rng).to(self.circuit.device)
        if not usable:
            _log.debug("peel: no activation to decode, begins at the mean leaf")
            return leaves.mean(0, keepdim=True).expand(self.shape)
        number = max(usable, key=lambda n: self.known[n].numel())

        def activations(images: Tensor) -> Tensor:
            with torch.no_grad():
                return self.circuit.run(images, {}, number)[0].applied[number].after

        return Decoder.fit(leaves, activations)(self.known[number])

    def _away(self, shown: Tensor) -> Tensor:
        """The relative squared distance, summed over the images and what is known."""
        made, _ = self.circuit.run(shown, self.known, self.until)
        total = shown.new_zeros(())
        for number in self.frontier:
            (kind, before, _), value = made.applied[number], self.known[number]
            away = kind.away(before, value).square().flatten(1).sum(1)
            total = total + (away / value.square().flatten(1).sum(1).clamp_min(1e-30)).sum()
        fed = {read.layer.weight: read.fed for read in made.reads}
        for layer, slopes, gradient in self.left:
            if layer.weight in fed:
                away = (layer.gradient(fed[layer.weight], slopes) - gradient).square().sum()
                total = total + away / gradient.square().sum().clamp_min(1e-30)
        return total
