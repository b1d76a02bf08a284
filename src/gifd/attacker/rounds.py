"""Rounds: several updates of one client on the same images, as one observation."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gifd.attacker.observation import Observation
from gifd.errors import InputError
from gifd.federation.protocols import Protocol
from gifd.model import Model
from gifd.updates import Update

_NAME = re.compile(r"rounds\.(\d+)\.(.*)", re.DOTALL)


def rounds(observations: Sequence[Observation]) -> Observation:
    """One observation of a client that computed all these updates on the same images.

    Each round had other weights, so each update says something else of the images. Attacks
    minimise the distance to all of them together. What is believed, defences included, is believed
    of each round. Labels are read from the first one.

    Args:
        observations: at least one; of one network, with the same ledger.

    Raises:
        InputError: none, or they disagree.
    """
    if not observations:
        raise InputError("expected at least one observation, got none")
    first = observations[0]
    if len(observations) == 1:
        return first
    granted = first.grants()
    for other in observations[1:]:
        if list(other.update) != list(first.update):
            raise InputError("expected rounds of one network, got different parameters")
        for name, value in other.grants().items():
            if name != "believed" and granted[name] != value:
                raise InputError(f"expected rounds of one {name}, got {granted[name]} and {value}")
    models = tuple(each.model for each in observations)
    whole = replace(first.model, module=_Copies([_copied(model) for model in models]))
    order = [_named(k, name) for name in first.update for k in range(len(models))]
    sent = {_named(k, n): t for k, each in enumerate(observations) for n, t in each.update.items()}
    return replace(
        first,
        update=Update({name: sent[name] for name in order}),
        model=whole.at({name: whole.parameters[name] for name in order}),
        protocol=Rounds(inners=tuple(each.protocol for each in observations), models=models),
    )


@final
@dataclass(frozen=True, kw_only=True)
class Rounds(Protocol):
    """The updates of several rounds under one roof, tensor by tensor.

    Args:
        inners: what the client is believed to compute in each round.
        models: the model of each round.
    """

    inners: tuple[Protocol, ...]
    models: tuple[Model, ...] = field(repr=False)

    def __call__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B *N"],
    ) -> Update:
        """The inner update at the weights of each round."""
        own, kept = _split(parameters), _split(buffers)
        if not own:  # of another model, such as a head alone
            return self.inners[0](model, parameters, buffers, images, labels)
        each = {
            k: self.inners[k](self.models[k], theta, kept.get(k, {}), images, labels)
            for k, theta in own.items()
        }
        return _joined(each, parameters)

    def as_gradient(self, update: Update, at: Mapping[str, Tensor]) -> Update:
        """Of each round's update, by its own weights."""
        sent, start = _split(update), _split(at)
        if not sent:
            return self.inners[0].as_gradient(update, at)
        each = {
            k: self.inners[k].as_gradient(Update(own, restarts=update.restarts), start[k])
            for k, own in sent.items()
        }
        return _joined(each, update, update.restarts)

    def visited(
        self, parameters: Mapping[str, Tensor], update: Update
    ) -> Sequence[Mapping[str, Tensor]]:
        """Those of the first round; the others' stay where they are."""
        own, sent = _split(parameters), _split(update)
        if not own:
            return self.inners[0].visited(parameters, update)
        path = self.inners[0].visited(own[0], Update(sent[0]))
        return [
            {**parameters, **{_named(0, name): tensor for name, tensor in theta.items()}}
            for theta in path
        ]

    @property
    def sized(self) -> bool:
        """In every round."""
        return all(inner.sized for inner in self.inners)

    def shown(self, name: str) -> Tensor | None:
        """Of its round."""
        found = _NAME.fullmatch(name)
        return self.inners[int(found[1])].shown(found[2]) if found else self.inners[0].shown(name)

    def noise(self, batch: int) -> float:
        """The root mean square over the rounds; it is independent in each."""
        each = [inner.noise(batch) for inner in self.inners]
        return math.hypot(*each) / math.sqrt(len(each))

    def localized(self, wrap: Callable[[Protocol], Protocol]) -> Protocol:
        """With `wrap` applied to each local gradient of each round."""
        return replace(self, inners=tuple(inner.localized(wrap) for inner in self.inners))

    def __repr__(self) -> str:
        return f"{len(self.inners)} rounds of {self.inners[0]!r}"


class _Copies(nn.Module):
    """The networks of all rounds; the first one's logits count."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.rounds = nn.ModuleList(modules)
        self.training = self.rounds.training = modules[0].training  # train() would change theirs

    def forward(self, x: Tensor) -> Tensor:
        return self.rounds[0](x)  # type: ignore[no-any-return]


def _copied(model: Model) -> nn.Module:
    """The network at the model's weights: two rounds may have one module, or one trained since."""
    module = copy.deepcopy(model.module)
    module.load_state_dict({**model.parameters, **model.buffers}, strict=False)
    return module


def _named(k: int, name: str) -> str:
    return f"rounds.{k}.{name}"


def _split(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The tensors of each round under their own names; none if they are not of rounds."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if parts := _NAME.fullmatch(name):
            found.setdefault(int(parts[1]), {})[parts[2]] = tensor
    return found


def _joined(
    each: Mapping[int, Update], like: Mapping[str, Tensor], restarts: int | None = None
) -> Update:
    """The rounds' tensors under their names, in the order of `like`."""
    found = {_named(k, name): t for k, update in each.items() for name, t in update.items()}
    return Update({name: found[name] for name in like}, restarts=restarts)
