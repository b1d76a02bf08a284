"""Model: the network under attack as a pure function, with normalisation and loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad

from gifd.errors import GRANT_LABELS, GifdError, ModelError, one_line
from gifd.kernels import once_only, unfused
from gifd.outputs import logits_in
from gifd.trace import Call, Calls

Loss = Callable[[Tensor, Tensor], Tensor]
_WITHOUT = "switch the extension 'regression' off"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The linear layer that computes the logits: names of its weight and bias."""

    weight: str
    bias: str | None
    classes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Any `torch.nn.Module` that maps images to logits, as a pure function.

    Images are in [0, 1]; `mean` and `std` are applied inside, per channel. The module is never
    modified: its parameters and buffers are copied at construction and passed to every call, so
    you can continue to train it. Parameters with `requires_grad=False` are not part of an update.

    Args:
        module: the network; called with normalised images (B, C, H, W). It returns logits
            (B, N), or an output in which `gifd.outputs.logits_in` finds them.
        mean, std: the normalisation, one number per channel.
        loss: `(logits, labels) -> scalar`; labels are indices (B,) or probabilities (B, N).

    Raises:
        ModelError: no trainable parameters, or an invalid normalisation.
    """

    module: nn.Module = field(repr=False)
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    loss: Loss = F.cross_entropy
    parameters: Mapping[str, Tensor] = field(init=False, repr=False)
    buffers: Mapping[str, Tensor] = field(init=False, repr=False)
    _tried: tuple[int, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ModelError(
                "expected one mean and one positive std per channel, "
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
    def training(self) -> bool:
        """Whether any part of the module is in training mode."""
        return any(part.training for part in self.module.modules())

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(iter(self.parameters.values())).device

    def at(self, parameters: Mapping[str, Tensor]) -> Model:
        """The same model with other values of the trained parameters."""
        other = copy.copy(self)
        object.__setattr__(other, "parameters", dict(parameters))
        return other

    def normalize(self, images: Float[Tensor, "*R B C H W"]) -> Float[Tensor, "*R B C H W"]:
        """`(images - mean) / std`, the module's input."""
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
        """The module's logits at these parameters, (B, N). It writes to copies of the buffers.

        All forward passes of a victim go through here, and can be differentiated twice.
        """
        state = dict(parameters)
        if self.training:
            zero = images.new_zeros(())  # adding it gives the copies the axis of an outer vmap
            buffers = {name: b + zero.to(b.dtype) for name, b in buffers.items()}
        state |= buffers
        inputs = self.normalize(images).to(next(iter(parameters.values())).dtype)
        with unfused():
            return logits_in(functional_call(self.module, state, (inputs,)))

    def loss_at(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Float[Tensor, ""]:
        """The loss of these images at these parameters.

        Raises:
            ModelError: the loss is not one number.
        """
        loss = self.loss(self.logits(parameters, buffers, images), labels)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(
                f"expected a loss that is one number in a tensor, got {got}: give it "
                "reduction='mean', or 'sum' if the client sums"
            )
        return loss

    def tried(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N"]:
        """The logits of these images, checked; the module's errors become one line.

        Raises:
            ModelError: the module fails on them, or does not return logits (B, N).
        """
        logits = self._told(images)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ModelError(
                f"expected logits (B, classes) from the model, got shape {tuple(logits.shape)}"
            )
        return logits

    def _told(self, images: Tensor) -> Tensor:
        try:
            return self.logits(self.parameters, self.buffers, images)
        except GifdError:
            raise
        except Exception as error:
            raise ModelError(
                f"expected a model that takes images {tuple(images.shape)}, got: "
                f"{one_line(error) or type(error).__name__}"
            ) from None

    def classes(self, image_shape: Sequence[int]) -> int:
        """The number of logits for images of shape (C, H, W).

        Raises:
            ModelError: see `tried`.
        """
        like = next(iter(self.parameters.values()))
        with torch.no_grad():
            return self.tried(like.new_zeros(2, *image_shape)).shape[1]

    def check_twice(self, image_shape: Sequence[int]) -> None:
        """Check, once, that model and loss can be differentiated twice, by doing so.

        Args:
            image_shape: (C, H, W) of the module's images.

        Raises:
            ModelError: the loss is not one number, or it or the module has no second derivative.
        """
        if self._tried == tuple(image_shape):
            return
        own = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        like = next(iter(own.values()))
        images = like.new_zeros(2, *image_shape).requires_grad_()
        labels = torch.zeros(2, dtype=torch.long, device=self.device)

        def loss(theta: Mapping[str, Tensor]) -> Tensor:
            return self.loss_at(theta, self.buffers, images, labels)

        try:
            with torch.enable_grad():
                grad(loss)(dict(self.parameters))  # fails on operations without torch.func support
                one = images.new_ones(()).requires_grad_()  # a constant would hide `once_only`
                slopes = torch.autograd.grad(
                    one * loss(own), list(own.values()), create_graph=True, materialize_grads=True
                )
                total = torch.stack([slope.sum() for slope in slopes]).sum()
                torch.autograd.grad(total, images)
                if once_only(total):
                    raise RuntimeError("a function marked with @once_differentiable")
        except GifdError:
            raise
        except Exception as error:
            raise ModelError(
                "expected a model and a loss of logits (B, N) and labels (B,) that can be "
                f"differentiated twice, got: {one_line(error) or type(error).__name__}: write them "
                "in PyTorch's own operations"
            ) from None
        object.__setattr__(self, "_tried", tuple(image_shape))

    def head(self, image_shape: Sequence[int]) -> Head:
        """Find the linear layer that computes the logits by tracing a forward pass.

        Args:
            image_shape: (C, H, W) of the module's images.

        Raises:
            ModelError: the logits are not the output of a linear layer with a trained weight.
        """
        like = next(iter(self.parameters.values()))
        images = like.new_zeros(2, *image_shape)  # a batch norm in training mode refuses one
        names = {id(tensor): name for name, tensor in self.parameters.items()}
        with torch.no_grad():
            call = self._head_call(images, f"{GRANT_LABELS}, they cannot be inferred")
        weight, bias = call.arguments["weight"], call.arguments.get("bias")
        if id(weight) not in names:
            raise ModelError(
                "expected a trained linear head, got one whose weight is frozen or computed: "
                f"{GRANT_LABELS}, they cannot be inferred"
            )
        return Head(
            weight=names[id(weight)],
            bias=None if bias is None else names.get(id(bias)),
            classes=call.result.shape[-1],
        )

    def representations(
        self, images: Float[Tensor, "N C H W"], remedy: str = _WITHOUT
    ) -> Float[Tensor, "N F"]:
        """The inputs of the head for these images; differentiable.

        Args:
            images: in [0, 1].
            remedy: the advice in an error.

        Raises:
            ModelError: the logits are not the output of a linear layer on one vector per image.
        """
        fed: Tensor = self._head_call(images, remedy).arguments["input"]
        if fed.ndim != 2:
            raise ModelError(
                f"expected a head on one vector per image, got {tuple(fed.shape)}: {remedy}"
            )
        return fed

    def _head_call(self, images: Tensor, remedy: str) -> Call:
        calls = Calls(F.linear, ("input", "weight", "bias"))
        with calls:
            output = self._told(images)
        writing = [call for call in calls.made if call.result is output]
        if not writing:
            raise ModelError(
                "expected a model whose last layer is linear (its output the logits), got "
                f"{type(self.module).__name__}: {remedy}"
            )
        return writing[-1]

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-3] != len(self.mean):
            raise ModelError(
                f"expected images with {len(self.mean)} channels (one mean and std each), "
                f"got {images.shape[-3]}"
            )
        mean = images.new_tensor(self.mean).view(-1, 1, 1)
        std = images.new_tensor(self.std).view(-1, 1, 1)
        return mean, std
