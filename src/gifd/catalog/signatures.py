"""Signatures: parameters of classes and functions that can be given as text, by annotation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, final, get_args, get_origin

from gifd.errors import InputError

_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_ONCE = ("prior", "public", "offline")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@final
@dataclass(frozen=True, kw_only=True)
class Option:
    """A parameter.

    Args:
        kinds: the allowed types and values: `bool`, `int`, `float`, `str`, `NoneType` or the
            values of a `Literal`; empty if it cannot be given as text.
        required: whether it has no default.
    """

    kinds: tuple[Any, ...]
    required: bool

    def read(self, name: str, value: str) -> object:
        """Convert a text to a value.

        Raises:
            InputError: no allowed type or value fits.
        """
        for kind in sorted(self.kinds, key=lambda kind: kind is not NoneType):
            try:
                return _read(kind, value)
            except (ValueError, KeyError):
                continue
        wanted = " or ".join(
            "none" if kind is NoneType else _WORDS.get(kind, str(kind)) for kind in self.kinds
        )
        raise InputError(f"expected {name} to be {wanted}, got '{value}'")


def parameters(thing: Callable[..., object] | object) -> dict[str, Option]:
    """The named parameters of a class or function."""
    return {
        name: Option(
            kinds=_kinds(parameter.annotation, parameter.default),
            required=parameter.default is Parameter.empty,
        )
        for name, parameter in _signature(thing).parameters.items()
        if parameter.kind in _NAMED
    }


def options(thing: Callable[..., object], besides: Collection[str] = ()) -> dict[str, Option]:
    """The parameters that can be given as text, except `besides` and those common to all."""
    return {
        name: option
        for name, option in parameters(thing).items()
        if set(option.kinds) - {NoneType} and name not in (*_ONCE, *besides)
    }


def _signature(thing: Any) -> inspect.Signature:
    try:
        return inspect.signature(thing, eval_str=True)
    except NameError:  # a name that is imported for type checkers only
        return inspect.signature(thing)
    except (TypeError, ValueError):  # some built-ins have none
        return inspect.Signature()


def _kinds(annotation: Any, default: object = None) -> tuple[Any, ...]:
    """The kinds by annotation; without a readable one, by the default's type."""
    if isinstance(annotation, str) or annotation is Parameter.empty:
        known = default is not None and default is not Parameter.empty
        annotation = type(default) if known else str
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    return (annotation,) if annotation in (*_WORDS, NoneType) else ()


def _read(kind: Any, value: str) -> object:
    if kind is NoneType:
        return {"none": None}[value.lower()]
    if kind is bool:
        return {"true": True, "false": False}[value.lower()]
    if kind in _WORDS:
        return kind(value)
    return {str(kind): kind}[value]
