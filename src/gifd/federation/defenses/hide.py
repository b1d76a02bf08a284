"""Hide: whole tensors of an update that the server never sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.errors import InputError, ModelError, one_line
from gifd.federation.defenses import zeros
from gifd.federation.defenses.defense import Defense, Masked, Wrapped
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.model import Model
from gifd.updates import Update

HEAD = "head"
"""The linear layer that computes the logits, if the model has no part of this name."""


@final
@dataclass(frozen=True, kw_only=True)
class Hide(Defense):
    """Sends nothing of some parts of the model: encrypted, or kept for the client's own model.

    The client trains all of them. What is not sent is zero in the update. (A part that is not
    trained at all has `requires_grad=False`, and is no part of an update.)

    Args:
        parts: what to hide, joined by '+': names of parameters or modules, shell patterns of
            parameters' names ('*.bias'), or 'head', the layer that computes the logits.
        all_but: instead, the parts to send; all others are hidden.

    Source: encrypted parts: Jin et al., FedML-HE: An Efficient Homomorphic-Encryption-Based
    Privacy-Preserving Federated Learning System, 2023. Parts of one's own: Arivazhagan et al.,
    Federated Learning with Personalization Layers, 2019.
    """

    parts: str | None = None
    all_but: str | None = None

    def __post_init__(self) -> None:
        if (self.parts is None) == (self.all_but is None) or not all(self._named):
            raise InputError(
                "expected parts to hide or, with all_but, parts to send, joined by '+', such as "
                f"'layer1+head', got parts={self.parts!r}, all_but={self.all_but!r}"
            )

    def prepare(self, model: Model, image_shape: Sequence[int]) -> Model:
        """The model as it is, if it has these parts and others to send.

        Raises:
            InputError: it has not.
        """
        self.hidden(model, image_shape)
        return model

    def wrap(self, protocol: Protocol, seed: int) -> Protocol:
        """Send zeros in their place."""
        return _Hidden(inner=protocol, what=self)

    def surrogate(self, protocol: Protocol, upload: Upload) -> Protocol:
        """The same: everyone knows which parts are not sent."""
        return hiding(protocol, upload, self.hidden(upload.model, upload.image_shape), repr(self))

    @classmethod
    def guess(cls, upload: Upload) -> Hide | None:
        """The tensors that are zero, though random images leave numbers in them."""
        empty = [name for name, tensor in upload.update.items() if not bool((tensor != 0).any())]
        if len(empty) in (0, len(upload.update)) or zeros.scattered(upload) > 0.05:
            return None  # compression empties small tensors too
        own = zeros.of_random_images(upload)
        hidden = [name for name in empty if bool((own[name] != 0).any())]
        return cls(parts="+".join(hidden)) if hidden else None

    def hidden(self, model: Model, image_shape: Sequence[int]) -> frozenset[str]:
        """The names of the model's parameters that are not sent.

        Raises:
            InputError: a part that the model does not have, or nothing left to send.
        """
        found = {name for part in self._named for name in _members(part, model, image_shape)}
        hidden = found if self.all_but is None else set(model.parameters) - found
        if hidden == set(model.parameters):
            raise InputError(f"expected parts that leave something to send, got {self}")
        return frozenset(hidden)

    @property
    def _named(self) -> list[str]:
        return (self.parts or self.all_but or "").split("+")


def parts_of(model: Model, depth: int | None = None) -> list[str]:
    """The modules at this depth that have trained parameters, in the model's order.

    Args:
        model: the victim.
        depth: levels of modules from the top; None: the first with several.

    Raises:
        InputError: a single part, of which nothing can be compared.
    """
    depths = range(1, 1 + max(name.count(".") + 1 for name in model.parameters))
    for level in depths if depth is None else [depth]:
        found = list(dict.fromkeys(_prefix(name, level) for name in model.parameters))
        if len(found) > 1:
            return found
    raise InputError(
        f"expected a model of several parts, got one, '{next(iter(model.parameters))}'"
        + ("" if depth is None else f", at depth {depth}: choose a larger one")
    )


def _prefix(name: str, level: int) -> str:
    """The first levels of a parameter's name; a module's, where it has one that deep."""
    *modules, own = name.split(".")
    return ".".join(modules[:level]) if modules else own


def hiding(protocol: Protocol, upload: Upload, names: frozenset[str], told: str) -> Masked:
    """The protocol with zeros in place of these parameters' update."""
    like = next(iter(upload.model.parameters.values()))
    return Masked(inner=protocol, masks=dict.fromkeys(sorted(names), like.new_zeros(())), name=told)


def _members(part: str, model: Model, image_shape: Sequence[int]) -> list[str]:
    """The parameters that a part names.

    Raises:
        InputError: none.
    """
    found = [
        name
        for name in model.parameters
        if name == part or name.startswith(f"{part}.") or fnmatchcase(name, part)
    ]
    if not found and part == HEAD:
        try:
            head = model.head(image_shape)
        except ModelError as error:
            raise InputError(f"expected the name of the head, got 'head': {error}") from None
        found = [name for name in (head.weight, head.bias) if name is not None]
    if not found:
        known = dict.fromkeys(_prefixes(model))
        close = get_close_matches(part, known, n=1)
        hint = f" (the nearest is '{close[0]}')" if close else ""
        raise InputError(
            f"expected parts that the model trains, such as {', '.join(list(known)[:3])}, got "
            f"'{one_line(part, 60)}'{hint}"
        )
    return found


def _prefixes(model: Model) -> list[str]:
    """Every module and parameter, outer ones first."""
    parts = [name.split(".") for name in model.parameters]
    depth = max(map(len, parts))
    return [".".join(p[:length]) for length in range(1, depth + 1) for p in parts if p[:length]]


@dataclass(frozen=True, kw_only=True)
class _Hidden(Wrapped):
    """The client's side."""

    what: Hide

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The inner update with zeros in place of what is not sent."""
        update = self.inner(model, parameters, buffers, images, labels)
        hidden = self.what.hidden(model, images.shape[1:])
        return Update({n: torch.zeros_like(t) if n in hidden else t for n, t in update.items()})

    def __repr__(self) -> str:
        return f"{self.inner!r} -> {self.what}"
