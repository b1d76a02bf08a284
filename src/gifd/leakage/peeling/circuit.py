"""Circuit: a pass through the victim in which known activations replace computed ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gifd.errors import GifdError, ModelError, one_line
from gifd.leakage.peeling.activations import Activation, activation
from gifd.leakage.peeling.layers import Layer, layer
from gifd.model import Model

Known = Mapping[int, Tensor]
"""Number of an activation in the order of the forward pass -> its output."""


class Applied(NamedTuple):
    """One call of an activation: the function, its input, and its output or the known value."""

    kind: Activation
    before: Tensor
    after: Tensor


class Read(NamedTuple):
    """One call of a linear layer.

    Args:
        layer: its weight and geometry.
        fed: its input.
        result: its output.
        source: number of the activation that made its input; None: something else did.
    """

    layer: Layer
    fed: Tensor
    result: Tensor
    source: int | None


class Normed(NamedTuple):
    """One call of a batch norm in eval mode: input, factor per channel, name of its bias."""

    fed: Tensor
    factor: Tensor
    bias: str


class _EnoughError(Exception):
    """The rest of the pass is not needed."""


@final
class Pass(TorchFunctionMode):
    """A context that records a pass, and puts in what is known.

    A known activation has its known value, and the derivative there. So whatever depends on known
    values alone is right, forwards and backwards, for any image that is passed.

    Args:
        known: activations to put in.
        names: id of a parameter -> its name.
        until: number of the last activation that is needed; None: the whole pass.
    """

    def __init__(self, known: Known, names: Mapping[int, str], until: int | None = None) -> None:
        super().__init__()
        self.applied: list[Applied] = []
        self.reads: list[Read] = []
        self.norms: list[Normed] = []
        self._known, self._names, self._until = known, names, until
        self._made: dict[int, int] = {}
        self._copied: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []  # a freed tensor's address is used again

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        kind = activation(func, args, kwargs)
        if kind is not None:
            return self._apply(kind, args[0] if args else kwargs["input"])
        result = func(*args, **kwargs)
        found = layer(func, args, kwargs, self._names)
        if found is not None and result.requires_grad:
            fed = args[0] if args else kwargs["input"]
            self.reads.append(Read(found, fed, result, self._source(fed)))
            return self._passed_on(result)
        if func is F.batch_norm:
            self._norm(*args, **kwargs)
        return result

    def once(self, read: Read) -> bool:
        """Whether this call is the only one with its weight, so that the gradient is its own."""
        return sum(other.layer.weight == read.layer.weight for other in self.reads) == 1

    def _apply(self, kind: Activation, before: Tensor) -> Tensor:
        number = len(self.applied)
        value = self._known.get(number)
        after = kind(before) if value is None else kind.known(before, value)
        self.applied.append(Applied(kind, before, after))
        self._made[after.data_ptr()] = number
        if number == self._until:
            raise _EnoughError
        return after

    def _source(self, fed: Tensor) -> int | None:
        """The activation whose output this is, perhaps in another shape."""
        number = self._made.get(fed.data_ptr())
        if number is None:
            return None
        after = self.applied[number].after
        reshaped = after.numel() == fed.numel() and after.is_contiguous() and fed.is_contiguous()
        return number if reshaped else None

    def _passed_on(self, result: Tensor) -> Tensor:
        """A copy, so that an operation in place later on leaves the recorded one as it is."""
        copy: Tensor = result.clone()
        self._copied[copy.data_ptr()] = result
        self._kept.append(copy)
        return copy

    def _norm(
        self,
        fed: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        name = self._names.get(id(bias))
        if training or running_var is None or name is None:
            return
        factor = (running_var + eps).rsqrt()
        fed = self._copied.get(fed.data_ptr(), fed)
        self.norms.append(Normed(fed, factor if weight is None else factor * weight, name))


@final
@dataclass(frozen=True, eq=False)
class Circuit:
    """A victim in a dtype of its own.

    Args:
        model: the victim.
        dtype: of all its tensors.
    """

    model: Model
    dtype: torch.dtype = torch.float64
    _parameters: dict[str, Tensor] = field(init=False, repr=False)
    _buffers: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def moved(tensor: Tensor) -> Tensor:
            kept = tensor.dtype if not tensor.is_floating_point() else self.dtype
            return tensor.to(self.device, kept)

        own = {name: moved(tensor) for name, tensor in self.model.parameters.items()}
        fixed = {name: moved(tensor) for name, tensor in self.model.buffers.items()}
        object.__setattr__(self, "_parameters", own)
        object.__setattr__(self, "_buffers", fixed)

    @property
    def device(self) -> torch.device:
        """The model's, or the CPU if that device has no float64."""
        device = self.model.device
        return torch.device("cpu") if device.type == "mps" else device

    def run(
        self, images: Float[Tensor, "B C H W"], known: Known, until: int | None = None
    ) -> tuple[Pass, Tensor | None]:
        """Pass images, with the known values put in.

        Args:
            images: in [0, 1], in the circuit's dtype.
            known: see `Pass`.
            until: see `Pass`.

        Returns:
            the recorded pass and the logits, if it was whole.

        Raises:
            ModelError: the module fails in this dtype.
        """
        names = {id(tensor): name for name, tensor in self._parameters.items()}
        made = Pass(known, names, until)
        try:
            with made:
                return made, self.model.logits(self._parameters, self._buffers, images)
        except _EnoughError:
            return made, None
        except GifdError:
            raise
        except Exception as error:
            raise ModelError(
                f"expected a model that can be run in {self.dtype} with its activations put in, "
                f"got: {one_line(error)}: use another attack"
            ) from None
