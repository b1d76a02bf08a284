"""Model: the network under attack as a pure function, with its normalisation and its loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from gifd.errors import ModelError
from gifd.trace import Call, Calls

Loss = Callable[[Tensor, Tensor], Tensor]
_WITHOUT = "switch the extension 'regression' off"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The linear layer that writes the logits: the names of its weight and of its bias."""

    weight: str
    bias: str | None
    classes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Any `torch.nn.Module` that maps images to logits, seen as a pure function.

    Public images are in [0, 1]; `mean` and `std` are applied inside, channel by channel.
    The module is never touched: its parameters and buffers are copied at construction and
    handed to every call, so that the module may go on training while it is attacked.
    Parameters with `requires_grad=False` are not trained and hence not part of an update.

    Args:
        module: the network; called with normalised images (B, C, H, W).
        mean, std: the normalisation, one number a channel.
        loss: `(logits, labels) -> scalar`; labels are indices (B,) or probabilities (B, N).

    Raises:
        ModelError: nothing to train, or a normalisation that cannot be one.
    """

    module: nn.Module = field(repr=False)
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    loss: Loss = F.cross_entropy
    parameters: Mapping[str, Tensor] = field(init=False, repr=False)
    buffers: Mapping[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ModelError(
                "expected one mean and one positive std a channel, "
                f"got mean={tuple(self.mean)}, std={tuple(self.std)}"
            )
        named = list(self.module.named_parameters())
        trained = {name: p.detach().clone() for name, p in named if p.requires_grad}
        if not trained:
            raise ModelError("expected a model with trainable parameters, got none")
        fixed = {name: p.detach().clone() for name, p in named if not p.requires_grad}
        fixed |= {name: b.detach().clone() for name, b in self.module.named_buffers()}
        object.__setattr__(self, "parameters", trained)
        object.__setattr__(self, "buffers", fixed)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(iter(self.parameters.values())).device

    def at(self, parameters: Mapping[str, Tensor]) -> Model:
        """The same model with other values of its trained parameters."""
        other = copy.copy(self)
        object.__setattr__(other, "parameters", dict(parameters))
        return other

    def normalize(self, images: Float[Tensor, "*R B C H W"]) -> Float[Tensor, "*R B C H W"]:
        """`(images - mean) / std`: what the module is fed."""
        mean, std = self._moments(images)
        return (images - mean) / std

    def denormalize(self, inputs: Float[Tensor, "*R B C H W"]) -> Float[Tensor, "*R B C H W"]:
        """The inverse of `normalize`: from the module's inputs back to images."""
        mean, std = self._moments(inputs)
        return inputs * std + mean

    def logits(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "..."]:
        """The module's output at these parameters, (B, N). Buffers it writes to are copies."""
        state = dict(parameters)
        if any(part.training for part in self.module.modules()):
            zero = images.new_zeros(())  # adding it gives the copies the axis of a vmap around us
            buffers = {name: b + zero.to(b.dtype) for name, b in buffers.items()}
        state |= buffers
        return functional_call(self.module, state, (self.normalize(images),))  # type: ignore[no-any-return]

    def classes(self, image_shape: Sequence[int]) -> int:
        """How many logits the model writes for an image of shape (C, H, W)."""
        like = next(iter(self.parameters.values()))
        with torch.no_grad():
            return self.logits(
                self.parameters, self.buffers, like.new_zeros(2, *image_shape)
            ).shape[-1]

    def head(self, image_shape: Sequence[int]) -> Head:
        """Find the linear layer that writes the logits by following one forward pass.

        Args:
            image_shape: (C, H, W) of an image that the module takes.

        Raises:
            ModelError: the logits are not written by a linear layer with a trained weight.
        """
        like = next(iter(self.parameters.values()))
        images = like.new_zeros(2, *image_shape)  # batch norm that trains refuses a single one
        names = {id(tensor): name for name, tensor in self.parameters.items()}
        with torch.no_grad():
            call = self._head_call(images, "grant the labels, they cannot be inferred")
        weight, bias = call.arguments["weight"], call.arguments.get("bias")
        if id(weight) not in names:
            raise ModelError(
                "expected a trained linear head, got one whose weight is frozen or computed: "
                "grant the labels, they cannot be inferred"
            )
        return Head(
            weight=names[id(weight)],
            bias=None if bias is None else names.get(id(bias)),
            classes=call.result.shape[-1],
        )

    def representations(
        self, images: Float[Tensor, "N C H W"], remedy: str = _WITHOUT
    ) -> Float[Tensor, "N F"]:
        """What the head is fed for these images; differentiable.

        Args:
            images: in [0, 1].
            remedy: what an error advises.

        Raises:
            ModelError: the logits are not written by a linear layer fed a vector an image.
        """
        fed: Tensor = self._head_call(images, remedy).arguments["input"]
        if fed.ndim != 2:
            raise ModelError(
                f"expected a head that is fed a vector an image, got {tuple(fed.shape)}: {remedy}"
            )
        return fed

    def _head_call(self, images: Tensor, remedy: str) -> Call:
        calls = Calls(F.linear, ("input", "weight", "bias"))
        with calls:
            output = self.logits(self.parameters, self.buffers, images)
        if not calls.made or calls.made[-1].result is not output:
            raise ModelError(
                "expected a model whose last layer is linear (its output the logits), got "
                f"{type(self.module).__name__}: {remedy}"
            )
        return calls.made[-1]

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-3] != len(self.mean):
            raise ModelError(
                f"expected images with {len(self.mean)} channels (one mean and std each), "
                f"got {images.shape[-3]}"
            )
        mean = images.new_tensor(self.mean).view(-1, 1, 1)
        std = images.new_tensor(self.std).view(-1, 1, 1)
        return mean, std
