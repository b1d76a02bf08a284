"""Update: what a client sends: ordered named tensors with an algebra and a file format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from gifd.errors import UpdateError, one_line


class Update(Mapping[str, Tensor]):
    """A gradient or a weight delta: one tensor per parameter, in the model's order.

    An update is immutable: its algebra returns new updates and is differentiable. With a *restart
    axis* every tensor has a leading axis of the same length R: `update[name]` has shape
    (R, *parameter shape), and `restart(r)` selects one.

    Args:
        tensors: name -> tensor, in the model's order.
        restarts: the length R of the leading restart axis, or None if there is none.
        squares: the result of `squares()`, if known.

    Raises:
        UpdateError: no tensors, or a tensor without the restart axis.
    """

    __slots__ = ("_squares", "_tensors", "restarts")

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        restarts: int | None = None,
        squares: Tensor | None = None,
    ) -> None:
        if not tensors:
            raise UpdateError("expected an update with at least one tensor, got none")
        if restarts is not None:
            for name, tensor in tensors.items():
                if tensor.ndim < 1 or tensor.shape[0] != restarts:
                    raise UpdateError(
                        f"expected a leading restart axis of {restarts} on every tensor, "
                        f"got {tuple(tensor.shape)} for '{name}'"
                    )
        self._tensors = dict(tensors)
        self._squares = squares
        self.restarts = restarts

    # -- a mapping ---------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        axis = "" if self.restarts is None else f", restarts={self.restarts}"
        return f"Update({len(self)} tensors, {self.numel:,} numbers{axis})"

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in order."""
        return list(self._tensors.values())

    @property
    def numel(self) -> int:
        """The total number of values, over all restarts."""
        return sum(tensor.numel() for tensor in self.tensors)

    # -- restarts ----------------------------------------------------------------------

    @classmethod
    def stack(cls, updates: Sequence[Update]) -> Update:
        """Stack R updates of one model along a new leading restart axis."""
        first = updates[0]
        for other in updates:
            first._check_alike(other)
        return cls(
            {name: torch.stack([u[name] for u in updates]) for name in first},
            restarts=len(updates),
        )

    def restart(self, index: int) -> Update:
        """The update of one restart, without the restart axis."""
        if self.restarts is None:
            raise UpdateError("this update has no restart axis: use it as it is")
        return Update({name: tensor[index] for name, tensor in self.items()})

    # -- algebra -----------------------------------------------------------------------

    def __add__(self, other: Update) -> Update:
        return self._with([a + b for a, b in self._pairs(other)])

    def __sub__(self, other: Update) -> Update:
        return self._with([a - b for a, b in self._pairs(other)])

    def __mul__(self, factor: float) -> Update:
        return self._with([a * factor for a in self.tensors])

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> Update:
        return self * (1.0 / factor)

    def __neg__(self) -> Update:
        return self * -1.0

    def add_scaled(self, other: Update, factor: float) -> Update:
        """`self + factor * other`, in one pass."""
        return self._with([torch.add(a, b, alpha=factor) for a, b in self._pairs(other)])

    def times(self, other: Update) -> Update:
        """The elementwise product."""
        return self._with([a * b for a, b in self._pairs(other)])

    def dots(self, other: Update) -> Float[Tensor, "N *R"]:
        """The inner product with `other` of each tensor: shape (N,) or (N, R)."""
        pairs = self._pairs(other)
        if self.restarts is None:
            return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in pairs])
        return torch.stack([torch.linalg.vecdot(_rows(a), _rows(b)) for a, b in pairs])

    def dot(self, other: Update) -> Float[Tensor, "*R"]:
        """The inner product with `other` over all tensors."""
        return self.dots(other).sum(0)

    def squares(self) -> Float[Tensor, "N *R"]:
        """The squared Euclidean norm of each tensor: shape (N,) or (N, R)."""
        return self.dots(self) if self._squares is None else self._squares

    def products(self, other: Update) -> tuple[Float[Tensor, "N *R"], Float[Tensor, "N *R"]]:
        """`dots(other)` and `squares()`, with a backward pass in two passes of memory, not five."""
        if self.restarts is not None:
            return self.dots(other), self.squares()
        pairs = [_Products.apply(a, b) for a, b in self._pairs(other)]  # type: ignore[no-untyped-call]
        return torch.stack([dot for dot, _ in pairs]), torch.stack([sq for _, sq in pairs])

    def norm(self) -> Float[Tensor, "*R"]:
        """The Euclidean norm of all tensors concatenated."""
        return self.squares().sum(0).sqrt()

    def map(self, function: Callable[[Tensor], Tensor]) -> Update:
        """Apply `function` to every tensor; it must keep the shapes."""
        return self._with([function(tensor) for tensor in self.tensors])

    def detach(self) -> Update:
        """The same values without their graph."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> Update:
        """The same update on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    # -- belonging to a model ----------------------------------------------------------

    def conform(self, parameters: Mapping[str, Tensor]) -> Update:
        """This update in the order of `parameters`, on their device and in their dtype.

        Raises:
            UpdateError: names all tensors that are missing, unknown, wrongly shaped, non-finite
                or not floating-point.
        """
        faults: list[str] = []
        taken: dict[str, Tensor] = {}
        missing = [name for name in parameters if name not in self]
        extra = [name for name in self if name not in parameters]
        if missing:
            faults.append(f"missing {_some(missing)}")
        if extra:
            faults.append(f"unknown {_some(extra)}")
        for name, parameter in parameters.items():
            if name not in self:
                continue
            given = self[name]
            shape = given.shape if self.restarts is None else given.shape[1:]
            if shape != parameter.shape:
                faults.append(
                    f"'{name}' expected shape {tuple(parameter.shape)}, got {tuple(shape)}"
                )
            elif given.is_meta:
                faults.append(f"'{name}' holds no numbers: it is on the meta device")
            elif not given.is_floating_point():
                faults.append(f"'{name}' expected floating-point numbers, got {_kind(given)}")
            else:
                taken[name] = given.to(device=parameter.device, dtype=parameter.dtype)
                if not bool(torch.isfinite(taken[name]).all()):
                    cast = f" in {_kind(parameter)}" if given.dtype != parameter.dtype else ""
                    faults.append(f"'{name}' holds values that are not finite{cast}")
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise UpdateError("the update does not fit the model: " + "; ".join(faults[:5]) + more)
        return Update(taken, restarts=self.restarts)

    # -- files -------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, with the order and the restart axis."""
        metadata = {"gifd.order": "\n".join(self)}
        if self.restarts is not None:
            metadata["gifd.restarts"] = str(self.restarts)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.items()}
        save_file(tensors, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> Update:
        """Read a safetensors file; one not written by `save` is read in its own order.

        Raises:
            UpdateError: the file is missing or not a safetensors file.
        """
        from safetensors import safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
            tensors = load_file(str(path))
        except Exception as error:  # a damaged file raises nearly every type
            raise UpdateError(
                f"expected a safetensors file with an update at '{one_line(path, 200)}', got: "
                f"{one_line(error)}"
            ) from None
        order = metadata["gifd.order"].split("\n") if "gifd.order" in metadata else list(tensors)
        restarts = metadata.get("gifd.restarts")
        if sorted(order) != sorted(tensors) or not (restarts or "0").isdigit():
            raise UpdateError(
                f"expected '{path}' as saved, got one whose metadata does not fit its tensors"
            )
        return cls(
            {name: tensors[name] for name in order},
            restarts=None if restarts is None else int(restarts),
        )

    # -- inside ------------------------------------------------------------------------

    def _with(self, tensors: Sequence[Tensor]) -> Update:
        return Update(dict(zip(self, tensors, strict=True)), restarts=self.restarts)

    def _check_alike(self, other: Update) -> None:
        if list(self) != list(other):
            raise UpdateError("expected two updates of one model, got different tensor names")

    def _pairs(self, other: Update) -> list[tuple[Tensor, Tensor]]:
        self._check_alike(other)
        if other.restarts not in (None, self.restarts):
            raise UpdateError(
                f"expected an update without a restart axis or with one of {self.restarts}, "
                f"got {other.restarts}"
            )
        return [(self[name], other[name].expand_as(self[name])) for name in self]


class _Products(torch.autograd.Function):
    """`<a, b>` and `<a, a>` of two tensors; the gradient in a is `s b + 2 t a`.

    Autograd would make three scaled copies, one of b and two of a, and add twice: five passes
    through the memory of a wide layer instead of two.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        flat = a.reshape(-1)
        return torch.dot(flat, b.reshape(-1)), torch.dot(flat, flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, s: Tensor, t: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        in_a, in_b = ctx.needs_input_grad
        return torch.addcmul(b * s, a, 2 * t) if in_a else None, a * s if in_b else None


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)  # a scalar parameter has only the restart axis


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
