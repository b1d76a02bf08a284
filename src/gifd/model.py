"""Model: the network under attack as a pure function, with normalisation and loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad

from gifd.errors import GRANT_LABELS, GifdError, InputError, ModelError, one_line
from gifd.kernels import once_only, transformed, unfused
from gifd.outputs import logits_in
from gifd.task import Task, task_of
from gifd.trace import Call, Calls
from gifd.wrappers import unwrapped

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
            (B, N), or an output in which `gifd.outputs.logits_in` finds them. Wrapped networks
            are unwrapped (`gifd.wrappers.unwrapped`).
        mean, std: the normalisation, one number per channel.
        loss: `(outputs, labels) -> scalar`. Labels are classes (B,) or, as in segmentation,
            (B, H, W); or numbers of the outputs' shape, as of several labels an image or of a
            regression (`gifd.task.Task`).
        autocast: the type of mixed precision in which the client computes; None: full precision.

    Raises:
        ModelError: no trainable parameters, or an invalid normalisation.
    """

    module: nn.Module = field(repr=False)
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    loss: Loss = F.cross_entropy
    autocast: torch.dtype | None = None
    parameters: Mapping[str, Tensor] = field(init=False, repr=False)
    buffers: Mapping[str, Tensor] = field(init=False, repr=False)
    _tried: tuple[int, ...] = field(init=False, repr=False, default=())
    _task: tuple[tuple[int, ...], Task] | None = field(init=False, repr=False, default=None)
    _running: dict[str, Tensor] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ModelError(
                "expected one mean and one positive std per channel, "
                f"got mean={tuple(self.mean)}, std={tuple(self.std)}"
            )
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ModelError(
                f"expected autocast to torch.bfloat16 or torch.float16, got {self.autocast}"
            )
        object.__setattr__(self, "module", unwrapped(self.module))
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

    def at(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None
    ) -> Model:
        """The same model with other values of the trained parameters, and of the buffers if given.

        Buffers are all that is not trained, frozen parameters too.
        """
        other = copy.copy(self)
        object.__setattr__(other, "parameters", dict(parameters))
        if buffers is not None:
            object.__setattr__(other, "buffers", dict(buffers))
        return other

    def running(self, state: dict[str, Tensor]) -> Model:
        """The same model, whose forward passes in training mode read and write these buffers.

        A module in training mode changes its own buffers in every pass, as batch norm its running
        statistics. A `Model` does not: each pass starts at the buffers that it is given. This one
        starts at `state` and puts the changed ones there; not within a transform of `torch.func`.
        """
        other = copy.copy(self)
        object.__setattr__(other, "_running", state)
        return other

    def evaluating(self) -> Model:
        """The same model in evaluation mode, with a module of its own."""
        other = copy.copy(self)
        object.__setattr__(other, "module", copy.deepcopy(self.module).eval())
        return other

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names and in the order of the module's state dict."""
        named = (*self.module.named_parameters(), *self.module.named_buffers())
        names = {id(tensor): name for name, tensor in named}
        own = {**self.parameters, **self.buffers}
        kept = self.module.state_dict(keep_vars=True)
        return {name: own[names[id(t)]] for name, t in kept.items() if id(t) in names}

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
        state, held = dict(parameters), dict(buffers)
        if self.training:
            zero = images.new_zeros(())  # adding it gives the copies the axis of an outer vmap
            held |= self._running or {}
            buffers = {name: b + zero.to(b.dtype) for name, b in held.items()}
        state |= buffers
        inputs = self.normalize(images).to(next(iter(parameters.values())).dtype)
        with unfused(), self._precision():
            logits = logits_in(functional_call(self.module, state, (inputs,)))
        if self.training and self._running is not None and not transformed():
            for name, before in held.items():  # batch norm writes without a trace in `_version`
                if not torch.equal(state[name], before):
                    self._running[name] = state[name].detach()
        return logits

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast, cache_enabled=False)

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
        outputs = self.logits(parameters, buffers, images)
        with self._precision():
            loss = self.loss(outputs, labels)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(
                f"expected a loss that is one number in a tensor, got {got}: give it "
                "reduction='mean', or 'sum' if the client sums"
            )
        return loss

    def tried(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *N"]:
        """The outputs for these images, checked; the module's errors become one line.

        Raises:
            ModelError: the module fails on them, or does not return one output for each.
        """
        outputs = self._told(images)
        if outputs.ndim == 0 or len(outputs) != len(images):
            raise ModelError(
                "expected outputs (B, ...) from the model, such as logits (B, classes), got shape "
                f"{tuple(outputs.shape)}"
            )
        return outputs

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

    def task(self, image_shape: Sequence[int]) -> Task:
        """What the outputs for images of shape (C, H, W) are compared with.

        Raises:
            ModelError: see `tried`; or a loss that takes no known kind of labels.
        """
        shape = tuple(image_shape)
        if self._task is None or self._task[0] != shape:
            like = next(iter(self.parameters.values()))
            with torch.no_grad():
                outputs = self.tried(like.new_zeros(3, *shape))
            object.__setattr__(self, "_task", (shape, task_of(outputs, self.loss)))
        assert self._task is not None
        return self._task[1]

    def classes(self, image_shape: Sequence[int]) -> int:
        """The number of classes, or of outputs, for images of shape (C, H, W).

        Raises:
            ModelError: see `task`.
        """
        return self.task(image_shape).classes

    def check_soft(self, image_shape: Sequence[int]) -> None:
        """Check that the loss takes searched labels: numbers, or probabilities (B, N, ...).

        Raises:
            InputError: it takes classes only.
        """
        task, like = self.task(image_shape), next(iter(self.parameters.values()))
        outputs = like.new_zeros(2, *task.outputs)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("error")
                self.loss(outputs, outputs if task.numbers else outputs.softmax(1))
        except Exception as error:
            raise InputError(
                "expected a loss that takes probabilities, to search the labels with the images, "
                f"got: {one_line(error) or type(error).__name__}: use an attack that is granted "
                "the labels or infers them"
            ) from None

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
        labels = self.task(image_shape).zeros(2, like)

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
                "expected a model and a loss that can be "
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
        writing = [call for call in calls.made if _same(call.result, output)]
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


def _same(result: Tensor, output: Tensor) -> bool:
    """Whether the output is this result, perhaps with other axes."""
    return result is output or (
        result.numel() == output.numel() and result.data_ptr() == output.data_ptr()
    )
