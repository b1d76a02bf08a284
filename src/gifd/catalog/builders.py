"""The builders: from a name and what a user chose to the thing itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from gifd.attacks import Attack, LabelMapping
from gifd.attacks.presets import known_preset
from gifd.catalog.own_victim import is_own, made_by
from gifd.catalog.tables import ATTACKS, BY_HAND, DEFENSES, LABELS, PRIORS, VICTIMS
from gifd.errors import InputError
from gifd.federation.defenses import Defense
from gifd.files import is_file, is_folder
from gifd.images import LARGEST_SIDE, MOST_CLASSES
from gifd.leakage.counts import LabelEstimator
from gifd.model import Model
from gifd.priors import Generator, read_checkpoint, read_remapper, write_remapper
from gifd.training import train_remapper
from gifd.victims import IMAGENET_MEAN, IMAGENET_STD
from gifd.weights import WheelFile, cache_dir

T = TypeVar("T")


def attack(
    name: str,
    *,
    prior: Generator | None,
    preset: str,
    without: Sequence[str] = (),
    steps: int | None = None,
    evaluations: int | None = None,
    restarts: int | None = None,
    label_mapping: LabelMapping | None = None,
) -> Attack:
    """Build an attack by name.

    Args:
        name: a key of `ATTACKS`.
        prior: for attacks that have one.
        preset: 'paper', 'gifd-paper' or 'strongest'.
        without: extensions of 'strongest' to switch off.
        steps: the total over its phases; the preset's own by default.
        evaluations: in place of steps, the victim gradients to spend, restarts included.
        restarts: the preset's own by default.
        label_mapping: for attacks whose prior is conditional.

    Raises:
        InputError: an unknown name, a prior missing, or a number out of range.
    """
    entry = _entry(ATTACKS, name, "attack")
    if restarts is not None and restarts < 1:
        raise InputError(f"expected at least 1 restart, got {restarts}")
    if entry.needs_prior and prior is None:
        raise InputError(f"expected a prior for '{name}', got none: choose {_names(PRIORS)}")
    given = (prior,) if entry.needs_prior else ()
    chosen = known_preset(preset)
    built = entry.build(*given, preset=chosen, restarts=restarts)
    if without:
        off = {name: False if name == "best" else 0.0 for name in without}
        built = entry.build(*given, preset=chosen, restarts=restarts, **off)
    if entry.needs_prior:
        built = replace(built, label_mapping=label_mapping)
    if steps is not None and evaluations is not None:
        raise InputError("expected steps or evaluations, got both: choose one")
    if evaluations is not None:
        return built.with_evaluations(evaluations)
    return built if steps is None else built.with_steps(steps)


def prior(
    name: str, *, size: int | None = None, options: Sequence[str] = (), offline: bool = False
) -> Generator:
    """A prior by name, fetched where it is not cached, or from a checkpoint file or folder.

    Args:
        name: a key of `PRIORS`, or a path (see `gifd.priors.checkpoints` for the formats).
        size: of the private images: a prior's larger images are averaged down to it, unless the
            options say how.
        options: of a checkpoint's architecture, each `key=value`.
        offline: refuse to fetch.

    Raises:
        InputError: an unknown name or option.
        WeightsError: weights that cannot be fetched or read, or are not the named ones.
    """
    if name in BY_HAND:
        public = BY_HAND[name]
        raise InputError(
            f"'{name}' is not fetched for you ({public.licence}): download it from "
            f"{public.source} and give the file's path in place of the name"
        )
    if name not in PRIORS and not (is_file(name) or is_folder(name)):
        raise InputError(
            f"expected a known prior ({_names(PRIORS)}) or a checkpoint file, got '{name}'"
        )
    entry = PRIORS.get(name)
    if options and entry is not None and isinstance(entry.file, WheelFile):
        raise InputError(f"expected no options for the prior '{name}', got {options[0]}")
    loaded = read_checkpoint(Path(name)) if entry is None else entry.load(offline)
    chosen: dict[str, object] = {}
    if isinstance(loaded, Generator):
        built = loaded
    else:
        chosen = loaded.parse(options)
        built = loaded.generator(name=Path(name).stem, **chosen)
    decided = {"area", "resolution"} & set(chosen)
    if decided or size is None or built.image_shape[1] <= size:
        return built
    return built.averaged(size)


def label_mapping(
    how: str,
    prior: Generator,
    *,
    classes: int,
    callback: Callable[[int, float], None] | None = None,
) -> LabelMapping | None:
    """The label mapping by what a user asks for.

    Args:
        how: 'auto' maps where the prior knows another number of classes than the victim, 'on'
            maps, 'off' does not; or the file of a remapper. For 'auto' and 'on' a remapper is
            trained on samples of the prior and cached.
        prior: any; an unconditional one needs no mapping.
        classes: of the victim.
        callback: told of every step, where one is trained.

    Raises:
        InputError: a remapper for another prior, or mapping asked for where there is nothing to
            map to.
        WeightsError: a file that is no remapper.
    """
    if prior.classes is None:
        if how in ("auto", "off"):
            return None
        raise InputError(f"expected a conditional prior to map labels to, got {prior}")
    if how == "off" or (how == "auto" and classes == prior.classes):
        return None
    if how in ("auto", "on"):
        path = _remapper_path(prior)
        if is_file(path):
            remapper = read_remapper(path)
        else:
            remapper = train_remapper(prior, name=path.stem, callback=callback)
            write_remapper(remapper, path)
    else:
        remapper = read_remapper(Path(how))
    if remapper.classes != prior.classes:
        raise InputError(
            f"expected a remapper to the {prior.classes} classes of {prior}, got one to "
            f"{remapper.classes}"
        )
    return LabelMapping(
        classify=remapper, name=f"{remapper.name}, accuracy {remapper.accuracy:.2f}"
    )


def _remapper_path(prior: Generator) -> Path:
    """Where the remapper of exactly these weights is cached."""
    digest = hashlib.sha256()
    for stage in prior.stages:
        for tensor in stage.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return cache_dir() / "remappers" / f"{prior.name[:80]}-{digest.hexdigest()[:16]}.safetensors"


def defense(text: str) -> Defense:
    """A defence as on a command line: `name:option=value,option=value`.

    Raises:
        InputError: an unknown name or option, one that is missing, or a value out of range.
    """
    name, _, settings = text.partition(":")
    entry = _entry(DEFENSES, name, "defence")
    known = {f.name: f for f in fields(entry.build)}  # type: ignore[arg-type]
    options: dict[str, object] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in known or not value or key in options:
            offered = ", ".join(f"{option}=..." for option in known)
            raise InputError(f"expected options of '{name}' ({offered}), each once, got '{text}'")
        options[key] = _option(key, str(known[key].type), value)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in options]
    if missing:
        raise InputError(f"expected '{name}:{missing[0]}=...', got '{text}': give {missing[0]}")
    return entry.build(**options)


def _option(key: str, kind: str, value: str) -> object:
    """A value of a field by the field's annotation."""
    try:
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        return {"int": int, "float": float}.get(kind, str)(value)
    except (KeyError, ValueError):
        what = {"bool": "true or false", "int": "a whole number"}.get(kind, "a number")
        raise InputError(f"expected {key} to be {what}, got '{value}'") from None


def label_estimator(name: str) -> LabelEstimator:
    """An estimator of label counts by name, a key of `LABELS`.

    Raises:
        InputError: an unknown name.
    """
    return _entry(LABELS, name, "estimator")()


def victim(
    name: str, *, classes: int, size: int, seed: int, device: torch.device | str = "cpu"
) -> Model:
    """A victim by name, its weights drawn with `seed`, in eval mode, ImageNet's normalisation.

    A name `package.module:factory` or `path/to/file.py:factory` imports the user's own code and
    calls `factory()`, which returns a `Model` (normalisation and loss included) or a
    `torch.nn.Module` that takes images normalised with ImageNet's mean and standard deviation.

    Raises:
        InputError: an unknown name, or a factory that cannot be imported or called.
    """
    if not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"expected at least 2 classes, at most {MOST_CLASSES:,}, got {classes}")
    if not 1 <= size <= LARGEST_SIDE:
        raise InputError(f"expected images of at most {LARGEST_SIDE} pixels a side, got {size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_own(name):
            made = made_by(name)
        else:
            made = _entry(VICTIMS, name, "victim").build(classes, size).eval()
    if isinstance(made, Model):
        return replace(made, module=made.module.to(device))
    if not isinstance(made, nn.Module):
        raise InputError(
            f"expected '{name}' to return a gifd.Model or a torch.nn.Module, "
            f"got {type(made).__name__}"
        )
    return Model(module=made.to(device), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _entry(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise InputError(f"expected a known {what} ({_names(table)}), got '{name}'")
    return table[name]


def _names(table: Mapping[str, object]) -> str:
    return ", ".join(table)
