"""Capture: an update in the form in which others hold it, fitted to a model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gifd.captures.names import nearest, renamed
from gifd.errors import NAME_HIDDEN, UpdateError, one_line
from gifd.model import Model
from gifd.updates import Update

Arrays = Sequence[Tensor | NDArray[np.generic]] | Mapping[str, Tensor | NDArray[np.generic]]
"""Tensors or NumPy arrays, in order or by name."""
_COUNTER = "num_batches_tracked"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Capture:
    """An update that others computed.

    Args:
        update: in the model's order, on its device and in its dtype.
        notes: what was done to make it fit, a sentence each.
        buffers: of the batch norms after the client's steps, on the CPU; empty if they are unknown
            or as before. `gifd.batch_norm.returned_statistics` reads them.
        whole: whether whole weights were given, of which those before were subtracted.
    """

    update: Update
    notes: tuple[str, ...] = ()
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    whole: bool = False

    def __repr__(self) -> str:
        return f"Capture({self.update!r}" + "".join(f"; {note}" for note in self.notes) + ")"


def from_state_dicts(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    model: Model,
    *,
    hidden: Collection[str] = (),
) -> Capture:
    """The weight delta `after - before`, of the parameters that the model trains.

    Args:
        before: the weights that the client received.
        after: those that it returned.
        model: that of the federation.
        hidden: parameters that the client does not send, or sends encrypted (`Hide.hidden`). They
            may be missing in `after`, and are zero in the update.

    Raises:
        UpdateError: they do not fit the model, or it has other weights than `before`.
    """
    first, kept, told = _fitted(before, model, "the weights before")
    if any(not _close(first[name], own) for name, own in model.parameters.items()) or any(
        _is_statistic(name) and not _close(kept[name], model.buffers[name]) for name in kept
    ):
        raise UpdateError(
            "expected the model at the weights before the client's training, got other weights: "
            "use the model that captures.at_weights(before, model) returns"
        )
    last, returned, also = _fitted(after, model, "the weights after", hidden)
    delta = _changes(last, first, hidden)
    return _capture(delta, model, dict.fromkeys([*told, *also]), returned)


def from_arrays(arrays: Arrays, model: Model, *, hidden: Collection[str] = ()) -> Capture:
    """An update, or whole weights, as tensors or NumPy arrays.

    A list is in the order of the model's state dict, as Flower sends it, or in that of its
    parameters, all or only those that are trained. Whole weights are recognised, and the model's
    are subtracted.

    Args:
        arrays: see above.
        model: that of the federation.
        hidden: see `from_state_dicts`; parts can be missing only where there are names.

    Raises:
        UpdateError: the arrays do not fit the model.
    """
    found, returned, told = _fitted(arrays, model, "the update", hidden)
    if not _are_weights({name: found[name] for name in found if name not in hidden}, model):
        return _capture(found, model, told)
    found = _changes(found, {n: t.cpu() for n, t in model.parameters.items()}, hidden)
    told.append("it holds whole weights, not their change: the model's weights were subtracted")
    return _capture(found, model, told, returned)


def from_gradients(gradients: Arrays, model: Model) -> Capture:
    """A gradient as a list, as `torch.autograd.grad` returns it, or by name.

    Raises:
        UpdateError: the gradients do not fit the model.
    """
    found, _, told = _fitted(gradients, model, "the gradient")
    return _capture(found, model, told)


def from_module(module: nn.Module, model: Model) -> Capture:
    """The gradient that a backward pass left in a module's parameters.

    The module may be wrapped by `DataParallel`, `torch.compile`, or Opacus, whose gradients of
    single examples are averaged if there are no others.

    Raises:
        UpdateError: a trained parameter without a gradient, or one that does not fit the model.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        single = getattr(parameter, "grad_sample", None)
        if parameter.grad is not None:
            found[name] = parameter.grad
        elif isinstance(single, Tensor):
            found[name] = single.mean(0)
        else:
            raise UpdateError(
                f"expected gradients in the module, got none in '{one_line(name, 80)}': call "
                "backward() first, and from_module before zero_grad()"
            )
    return from_gradients(found, model)


def at_weights(
    weights: Arrays, model: Model, *, hidden: Collection[str] = ()
) -> tuple[Model, tuple[str, ...]]:
    """The model with other weights and buffers, and what was done to make them fit.

    Args:
        weights: all of a state dict, by name or in its order; batch norms' counters may miss.
        model: whose module is copied.
        hidden: parameters that may miss, as a client's own head; they stay the model's.

    Raises:
        UpdateError: they do not fit the model.
    """
    wanted = model.module.state_dict()
    given, told = _named(weights, wanted, model, "the weights")
    absent = [n for n in wanted if n not in given and not n.endswith(_COUNTER)]
    missing = [name for name in absent if name not in hidden]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        raise UpdateError(_unfit("the weights", missing, unknown, model))
    for name, tensor in wanted.items():
        if name in given and given[name].shape != tensor.shape:
            raise UpdateError(
                f"expected '{one_line(name, 80)}' of shape {tuple(tensor.shape)}, got "
                f"{tuple(given[name].shape)[:8]}"
            )
        if name in given and not bool(torch.isfinite(given[name].double()).all()):
            raise UpdateError(f"expected finite weights, got '{one_line(name, 80)}' with others")
    module = copy.deepcopy(model.module)
    module.load_state_dict({**wanted, **given})
    notes = [f"the weights: {told}"] if told else []
    if absent:
        notes.append(f"the weights: {len(absent)} hidden tensors are missing, the model's are used")
    if len(given) + len(absent) < len(wanted):
        notes.append("the weights: batch norms' counters are missing, the model's own are used")
    return replace(model, module=module), tuple(notes)


def _capture(
    found: Mapping[str, Tensor],
    model: Model,
    told: Iterable[str],
    returned: Mapping[str, Tensor] | None = None,
) -> Capture:
    """The capture of these tensors; `returned` are the buffers of whole weights."""
    update = Update({name: tensor.detach() for name, tensor in found.items()})
    if not any(bool((tensor != 0).any()) for tensor in update.tensors):
        raise UpdateError(
            "expected an update with numbers other than 0, got zeros only: are the weights before "
            "and after the same?"
        )
    buffers = {} if returned is None else _moved(returned, model)
    also = [_TRAINING] if buffers else []
    return Capture(
        update=update.conform(model.parameters),
        notes=(*told, *also),
        buffers=buffers,
        whole=returned is not None,
    )


_TRAINING = "its batch norms' buffers changed: the client trained them in training mode"


# -- fitting -----------------------------------------------------------------------------


def _changes(
    last: Mapping[str, Tensor], first: Mapping[str, Tensor], hidden: Collection[str]
) -> dict[str, Tensor]:
    """The differences, in float64; 0 for what is hidden."""
    return {
        name: torch.zeros_like(own, dtype=torch.float64)
        if name in hidden
        else last[name].double() - own.double()
        for name, own in first.items()
    }


def _fitted(
    arrays: Arrays, model: Model, what: str, hidden: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """The tensors of the trained parameters, on the CPU, the buffers, and what was done.

    What is hidden is 0.
    """
    wanted, own = model.parameters, {*model.parameters, *model.buffers}
    given, told = _named(arrays, own, model, what)
    notes = [f"{what}: {told}"] if told else []
    known = own.union(model.module.state_dict())
    missing = [name for name in wanted if name not in given and name not in hidden]
    extra = [name for name in given if name not in wanted]
    dropped = [name for name in extra if name in known or _is_statistic(name)]
    unknown = [name for name in extra if name not in dropped]
    if missing or unknown:
        raise UpdateError(_unfit(what, missing, unknown, model))
    if dropped:
        frozen = {name for name, p in model.module.named_parameters() if not p.requires_grad}
        kinds = {"frozen" if name in frozen else "buffers" for name in dropped}
        notes.append(
            f"{what}: {len(dropped)} tensors that are not trained were left out "
            f"({' and '.join(sorted(kinds))})"
        )
    if hidden:
        notes.append(f"{what}: {len(hidden)} tensors are hidden, and not used")
    buffers = {name: given[name] for name in dropped if name in model.buffers}
    found = {
        name: torch.zeros_like(own, device="cpu") if name in hidden else given[name]
        for name, own in wanted.items()
    }
    return found, buffers, notes


def _named(
    arrays: Arrays, known: Collection[str], model: Model, what: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors under the model's names, and what was changed in their own."""
    if isinstance(arrays, Mapping):
        return renamed(_tensors(arrays.items()), known)
    return _by_order(_tensors(enumerate(arrays)), model, what), ""


def _tensors(items: Any) -> dict[Any, Tensor]:
    found: dict[Any, Tensor] = {}
    for name, array in items:
        if isinstance(array, Tensor):
            found[name] = array.detach().cpu()
            continue
        try:
            found[name] = torch.from_numpy(np.asarray(array, order="C"))
        except (TypeError, ValueError) as error:
            raise UpdateError(
                f"expected tensors or arrays of numbers, got {type(array).__name__} at "
                f"'{one_line(name, 80)}': {one_line(error)}"
            ) from None
    return found


def _by_order(given: Mapping[int, Tensor], model: Model, what: str) -> dict[str, Tensor]:
    """A list under the names of the first order whose shapes it has."""
    shapes = {name: tensor.shape for name, tensor in model.module.state_dict().items()}
    every = [name for name, _ in model.module.named_parameters()]
    orders = (list(shapes), every, list(model.parameters))
    for order in orders:
        if len(order) == len(given) and all(
            _same(given[place].shape, shapes[name]) for place, name in enumerate(order)
        ):
            return {name: given[place].reshape(shapes[name]) for place, name in enumerate(order)}
    lengths = sorted({len(order) for order in orders})
    if len(given) not in lengths:
        raise UpdateError(
            f"expected {what} as a list of {' or '.join(map(str, lengths))} arrays (all of the "
            f"state dict, the parameters, or the trained ones), got {len(given)}"
        )
    order = next(order for order in orders if len(order) == len(given))
    place = next(i for i, name in enumerate(order) if not _same(given[i].shape, shapes[name]))
    raise UpdateError(
        f"expected {what} in the order of the model, whose number {place} is "
        f"'{one_line(order[place], 80)}' of shape {tuple(shapes[order[place]])}, got shape "
        f"{tuple(given[place].shape)[:8]}"
    )


def _same(one: torch.Size, other: torch.Size) -> bool:
    """Whether the shapes are equal; NumPy makes () of a scalar to (1,) and back."""
    return one == other or (one.numel() == other.numel() == 1 and len(one) + len(other) == 1)


def _are_weights(found: Mapping[str, Tensor], model: Model) -> bool:
    """Whether the tensors point along the model's weights and are about as long.

    A gradient or a change of weights is nearly orthogonal to them, or much shorter. After a large
    step some weights may be far away, so one tensor that still lies near the model's is enough.
    """
    own = {name: model.parameters[name].detach().cpu().double() for name in found}
    if any(found[name].shape != tensor.shape for name, tensor in own.items()):
        return False  # `conform` says so
    given = {name: found[name].double().flatten() for name in own}
    weights = {name: tensor.flatten() for name, tensor in own.items()}
    large = [name for name, tensor in own.items() if tensor.numel() >= _MANY and tensor.ndim > 1]
    return _along(torch.cat([*given.values()]), torch.cat([*weights.values()]), 0.5) or any(
        _along(given[name], weights[name], 0.8) for name in large
    )


_MANY = 32
"""Numbers of a tensor whose direction is no chance."""


def _along(given: Tensor, weights: Tensor, cosine: float) -> bool:
    """Whether a vector has at least this cosine to another one, and about its length."""
    one, other = float(given.norm()), float(weights.norm())
    return float(given @ weights) > cosine * one * other and other / 2 < one < 2 * other


def _close(given: Tensor, own: Tensor) -> bool:
    """Whether a tensor is the model's, but for rounding to half precision."""
    if given.shape != own.shape:
        return True  # `conform` says so
    away = (given.double() - own.detach().cpu().double()).norm()
    return float(away) <= 1e-2 * float(own.double().norm()) + 1e-12


def _moved(returned: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """The batch norms' buffers among these; none if no running statistic changed."""
    found = {name: tensor for name, tensor in returned.items() if _is_statistic(name)}
    for name, tensor in found.items():
        if not _same(tensor.shape, model.buffers[name].shape):
            raise UpdateError(
                f"expected '{one_line(name, 80)}' of shape {tuple(model.buffers[name].shape)}, got "
                f"{tuple(tensor.shape)[:8]}"
            )
    changed = any(
        not torch.equal(tensor, model.buffers[name].cpu().to(tensor.dtype))
        for name, tensor in found.items()
        if not name.endswith(_COUNTER)
    )
    return found if changed else {}


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", _COUNTER)


def _unfit(what: str, missing: Sequence[str], unknown: Sequence[str], model: Model) -> str:
    parts = []
    if missing:
        unsent = "" if unknown else f" (if the client does not send it, {NAME_HIDDEN})"
        parts.append(f"misses {_some(missing)}{unsent}")
    if unknown:
        hint = nearest(unknown[0], missing or model.parameters)
        parts.append(f"has {_some(unknown)}, unknown to the model{hint}")
    return f"expected {what} to have the model's names, got one that {' and '.join(parts)}"


def _some(names: Sequence[str]) -> str:
    first = f"'{one_line(names[0], 80)}'"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
