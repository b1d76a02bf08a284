"""Signatures: short vectors of the updates of many images, by first derivatives alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import ModelError
from gifd.leakage.peeling.circuit import Circuit, Read
from gifd.leakage.peeling.layers import Convolution
from gifd.search.sketch import Sketch

Signature = list[Float[Tensor, "_"]]
"""Of one update: a vector per weight, in the order of the model."""


@final
class Signatures:
    """Makes signatures of updates, the observed one and those of other images.

    A signature consists of sketches (`gifd.search.sketch`) of the weights in the later half of
    the model, which say most about the image. The noise that the attacker believes in is added to
    those of other images, and numbers that a defence hides are 0 in all of them, so that all
    signatures are alike.

    If the update is the gradient of one step, those of many images take one pass: the gradient of
    a weight is a product of slopes and inputs, and these are sketched before they are multiplied.
    Whether this is so is found out by comparison with the replay of one image; otherwise each
    update is replayed.

    Args:
        observation: the update, and the attacker's beliefs.
        labels: of the private images.
        rng: draws the sketch and the noise.
    """

    AT_ONCE: ClassVar[int] = 16
    """Images in one pass."""
    FEWEST: ClassVar[int] = 6
    """Weights at least, if there are so many."""

    def __init__(
        self, observation: Observation, labels: Shaped[Tensor, "B *T"], rng: torch.Generator
    ) -> None:
        self._observation, self._rng = observation, rng
        model, protocol = observation.model, observation.protocol
        self._labels = labels.to(model.device)
        self._std = protocol.noise(len(labels))
        names = [name for name, tensor in model.parameters.items() if tensor.ndim > 1]
        names = names or list(model.parameters)
        self._names = names[-max(self.FEWEST, (len(names) + 1) // 2) :]
        self._sketch = Sketch({name: model.parameters[name] for name in self._names}, rng)
        self._fast: bool | None = None
        self.observed = self._signature(dict(observation.gradient))

    def __call__(self, images: Float[Tensor, "M B C H W"]) -> list[Float[Tensor, "M _"]]:
        """The signatures of M batches, one matrix per weight, with noise."""
        like = next(iter(self._observation.model.parameters.values()))
        images = images.to(like)
        if self._fast is None:
            self._fast = self._agree(images[:1])
        rows: list[Signature] = []
        many = max(1, self.AT_ONCE // images.shape[1]) if self._fast else 1
        for part in torch.split(images, many):
            rows += self._passed(part) if self._fast else [self._replayed(part[0])]
        found = [torch.stack(column) for column in zip(*rows, strict=True)]
        if self._std > 0:
            found = [
                each + self._std * torch.randn(each.shape, generator=self._rng).to(each)
                for each in found
            ]
        return found

    def _signature(self, gradient: dict[str, Tensor]) -> Signature:
        kept = {}
        for name in self._names:
            shown = self._observation.protocol.shown(name)
            kept[name] = gradient[name] if shown is None else gradient[name] * shown
        return self._sketch(kept)

    def _replayed(self, images: Float[Tensor, "B C H W"]) -> Signature:
        """By the protocol that the attacker believes in."""
        with torch.no_grad():
            update = self._observation.replay(images, self._labels)
            return self._signature(dict(self._observation.as_gradient(update)))

    def _agree(self, images: Float[Tensor, "1 B C H W"]) -> bool:
        """Whether one pass gives what the replay gives."""
        if self._observation.model.training:
            return False
        truth = self._replayed(images[0])
        try:
            (found,) = self._passed(images)
        except (ModelError, StopIteration):
            return False
        return all(
            float((one - other).norm()) <= 1e-3 * float(other.norm())
            for one, other in zip(found, truth, strict=True)
        )

    def _passed(self, images: Float[Tensor, "M B C H W"]) -> list[Signature]:
        """One forward pass, and a backward one to the first layer of the signature."""
        model = self._observation.model
        members, batch = images.shape[:2]
        circuit = Circuit(model, images.dtype)
        with torch.enable_grad():
            shown = images.flatten(0, 1).requires_grad_()
            made, logits = circuit.run(shown, {})
            assert logits is not None
            if len(logits) != members * batch:
                raise ModelError("expected logits for each image")
            each = torch.split(logits, batch)
            loss = torch.stack([model.loss(own, self._labels) for own in each]).sum()
            reads = [
                next(r for r in made.reads if r.layer.weight == name and made.once(r))
                for name in self._names
            ]
            slopes = torch.autograd.grad(
                loss, [r.result for r in reads], materialize_grads=True, allow_unused=True
            )
        with torch.no_grad():
            columns = [
                self._product(read, slope, members)
                for read, slope in zip(reads, slopes, strict=True)
            ]
        return [list(row) for row in zip(*columns, strict=True)]

    def _product(self, read: Read, slopes: Tensor, members: int) -> Float[Tensor, "M _"]:
        """The sketches of the products of these slopes and the layer's inputs."""
        left, right = self._sketch.sides(read.layer.weight)
        fed = read.fed.detach()
        if isinstance(read.layer, Convolution):
            layer = read.layer
            slopes = slopes if left is None else torch.einsum("ro,nohw->nrhw", left, slopes)
            fed = fed if right is None else torch.einsum("si,nihw->nshw", right, fed)
            seen = F.unfold(fed, layer.kernel, layer.dilation, layer.padding, layer.stride)
            both = slopes.flatten(2), seen  # (N, r, Q), (N, s k, Q)
        else:
            slopes = slopes.view(len(slopes), -1, slopes.shape[-1])
            fed = fed.reshape(len(fed), -1, fed.shape[-1])
            slopes = slopes if left is None else slopes @ left.T
            fed = fed if right is None else fed @ right.T
            both = slopes.mT, fed.mT
        one, other = (part.reshape(members, -1, *part.shape[1:]) for part in both)
        return torch.einsum("mbrq,mbsq->mrs", one, other).flatten(1)


def away(one: Sequence[Tensor], other: Sequence[Tensor], unit: Sequence[Tensor]) -> float:
    """Distance of two signatures, each weight relative to the length of its part in `unit`."""
    total = 0.0
    for mine, theirs, own in zip(one, other, unit, strict=True):
        total += float((mine - theirs).square().sum() / own.square().sum().clamp_min(1e-30))
    return math.sqrt(total)
