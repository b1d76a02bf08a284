"""PRECODE: a variational bottleneck in front of the head, with noise in every gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gifd.errors import InputError, ModelError
from gifd.federation.defenses.defense import Defense, Local
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update

NOISE = "precode_noise"
"""The buffer with the bottleneck's noise: (B, width), or zeros (1, 1)."""


@final
@dataclass(frozen=True, kw_only=True)
class Precode(Defense):
    """A variational bottleneck on the input of the head.

    `z = m + noise s`, where m and softplus^-1(s) are linear in the input. A second linear layer
    maps z back to the head's size. The loss gets the extra term
    `beta KL(N(m, s^2) || N(0, 1))`, in bits, as a mean over the batch. Client and server share the
    model. The client draws the noise in every local step and does not send it.

    Args:
        width: size of z.
        beta: weight of the divergence, at least 0.
        seed: of the weights of the two layers, with PyTorch's default initialisation.

    Source: Scheliga et al., PRECODE: A Generic Model Extension to Prevent Deep
    Gradient Leakage, WACV 2022; 256 and 1e-3 as in its code.
    """

    width: int = 256
    beta: float = 1e-3
    seed: int = 0

    inside = True

    def __post_init__(self) -> None:
        if self.width < 1 or not self.beta >= 0:
            raise InputError(
                f"expected width >= 1 and beta >= 0, got width={self.width}, beta={self.beta}"
            )

    def prepare(self, model: Model, image_shape: Sequence[int]) -> Model:
        """The model with the bottleneck in front of its head.

        Raises:
            ModelError: the head is not a `torch.nn.Linear` of the model.
        """
        name = model.head(image_shape).weight.rpartition(".")[0]
        module = copy.deepcopy(model.module)
        parent, _, last = name.rpartition(".")
        holder = module.get_submodule(parent)
        head = module.get_submodule(name) if name else None
        if not isinstance(head, nn.Linear):
            raise ModelError(
                "expected a head that is a torch.nn.Linear in the model for PRECODE, got "
                f"{type(head).__name__}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            bottleneck = _Bottleneck(head.in_features, self.width, self.beta)
        whole = nn.Sequential(bottleneck.to(head.weight), head)
        whole.train(head.training)
        holder.add_module(last, whole)
        return replace(model, module=module)

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Fresh noise in every local step."""
        rng = torch.Generator().manual_seed(seed)
        return protocol.localized(lambda inner: _Noisy(inner=inner, precode=self, rng=rng))

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The noise is unknown and replaced by zero."""
        return protocol


class _Bottleneck(nn.Module):
    def __init__(self, features: int, width: int, beta: float) -> None:
        super().__init__()
        self.encode = nn.Linear(features, 2 * width)
        self.decode = nn.Linear(width, features)
        self.beta = beta
        self.register_buffer(NOISE, torch.zeros(1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """(B, F) -> (B, F); the gradient of the divergence is attached to the output."""
        mean, raw = self.encode(x).chunk(2, dim=1)  # (B, width) each
        std = F.softplus(raw)
        noise: Tensor = getattr(self, NOISE)
        z = mean + std * noise
        bits = (
            -0.5
            * (1 + 2 * std.log() - mean.square() - std.square()).sum(1)
            / torch.log(torch.tensor(2.0))
        )
        decoded: Tensor = self.decode(z)
        return _Attached.apply(decoded, self.beta * bits.mean())  # type: ignore[no-any-return, no-untyped-call]


class _Attached(torch.autograd.Function):
    """Returns x; the gradient with respect to the second argument is 1, as if added to the loss."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, loss: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grad, torch.ones_like(loss)


@dataclass(frozen=True, kw_only=True)
class _Noisy(Local):
    precode: Precode
    rng: torch.Generator

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The gradient with fresh noise in the bottleneck."""
        drawn = torch.randn(len(images), self.precode.width, generator=self.rng).to(images)
        noisy = {n: drawn if n.endswith(NOISE) else b for n, b in buffers.items()}
        return self.inner(model, parameters, noisy, images, labels)

    def __repr__(self) -> str:
        return f"{self.precode!r} of {self.inner!r}"
