"""The builders: from a text and what a user chose to the thing itself.

Every text is a name of the catalogue or one's own object, with or without options, in one of the
forms of `gifd.catalog.resolver`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gifd.attacks import Attack, LabelMapping
from gifd.attacks.presets import known_preset
from gifd.catalog.resolver import Found, resolve, split
from gifd.catalog.tables import ATTACKS, BY_HAND, DEFENSES, LABELS, METRICS, PRIORS, VICTIMS
from gifd.errors import InputError
from gifd.federation.defenses import Defense
from gifd.files import is_file, is_folder
from gifd.images import LARGEST_SIDE, MOST_CLASSES
from gifd.leakage.counts import LabelEstimator
from gifd.metrics import Metric
from gifd.model import Model
from gifd.priors import Generator, read_checkpoint, read_remapper, write_remapper
from gifd.training import train_remapper
from gifd.victims import IMAGENET_MEAN, IMAGENET_STD
from gifd.weights import cache_dir


def attack(
    text: str,
    *,
    prior: Generator | None,
    preset: str,
    without: Sequence[str] = (),
    steps: int | None = None,
    evaluations: int | None = None,
    restarts: int | None = None,
    label_mapping: LabelMapping | None = None,
) -> Attack:
    """Build an attack.

    One's own is a function like ours: it is handed `prior`, `preset` and `restarts` if it has
    parameters of these names, and returns an `Attack`.

    Args:
        text: a key of `ATTACKS` or one's own; its options are the function's own arguments.
        prior: for attacks that have one.
        preset: 'paper', 'gifd-paper' or 'strongest'.
        without: extensions of ours to switch off, where it has them.
        steps: the total over its phases; the preset's own by default.
        evaluations: in place of steps, the victim gradients to spend, restarts included.
        restarts: the preset's own by default.
        label_mapping: for attacks whose prior is conditional.

    Raises:
        InputError: an unknown name, a wrong option, a prior missing, or a number out of range.
    """
    found = _attack(text)
    if restarts is not None and restarts < 1:
        raise InputError(f"expected at least 1 restart, got {restarts}")
    if found.takes("prior") and prior is None:
        raise InputError(f"expected a prior for '{text}', got none: choose {', '.join(PRIORS)}")
    offered = {"prior": prior, "preset": known_preset(preset), "restarts": restarts}
    off = {n: False if n == "best" else 0.0 for n in without if found.takes(n)}
    built = found.made(**offered, **off)
    if restarts is not None and not found.takes("restarts"):
        built = replace(built, restarts=restarts)
    if found.takes("prior"):
        built = replace(built, label_mapping=label_mapping)
    if steps is not None and evaluations is not None:
        raise InputError("expected steps or evaluations, got both: choose one")
    if evaluations is not None:
        return built.with_evaluations(evaluations)
    return built if steps is None else built.with_steps(steps)


def needs_prior(text: str) -> bool:
    """Whether an attack is to be handed a prior.

    Raises:
        InputError: see `attack`.
    """
    return _attack(text).takes("prior")


def _attack(text: str) -> Found[Attack]:
    return resolve(text, ATTACKS, "attack", (Attack,))


def prior(
    text: str, *, size: int | None = None, options: Sequence[str] = (), offline: bool = False
) -> Generator:
    """A prior by name, fetched where it is not cached; one's own; or from a checkpoint.

    Args:
        text: a key of `PRIORS`, one's own, or the path of a checkpoint file or folder (see
            `gifd.priors.checkpoints` for the formats).
        size: of the private images: a prior's larger images are averaged down to it, unless the
            options say how.
        options: more of them, each `key=value`; of a checkpoint, those of its architecture.
        offline: refuse to fetch.

    Raises:
        InputError: an unknown name or option.
        WeightsError: weights that cannot be fetched or read, or are not the named ones.
    """
    name, _ = split(text, PRIORS)
    if text in BY_HAND:
        public = BY_HAND[text]
        raise InputError(
            f"'{text}' is not fetched for you ({public.licence}): download it from "
            f"{public.source} and give the file's path in place of the name"
        )
    if name not in PRIORS and not text.endswith(".py") and (is_file(text) or is_folder(text)):
        checkpoint = read_checkpoint(Path(text))
        chosen = checkpoint.parse(options)
        built = checkpoint.generator(name=Path(text).stem, **chosen)
    else:
        found = resolve(text, PRIORS, "prior", (Generator,), options, also=", a checkpoint file")
        chosen = dict(found.chosen)
        built = found.made(offline=offline)
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
    """A defence: `name:option=value,option=value`, or one's own.

    Raises:
        InputError: an unknown name or option, one that is missing, or a value out of range.
    """
    return resolve(text, DEFENSES, "defence", (Defense,)).made()


def label_estimator(text: str) -> LabelEstimator:
    """An estimator of label counts: a key of `LABELS`, or one's own.

    Raises:
        InputError: an unknown name or option.
    """
    return resolve(text, LABELS, "estimator", (LabelEstimator,)).made()


def metric(text: str, *, offline: bool = False) -> Metric:
    """A metric: a key of `METRICS`, or one's own.

    Args:
        text: which.
        offline: for those that fetch weights: refuse to.

    Raises:
        InputError: an unknown name or option.
    """
    return resolve(text, METRICS, "metric", (Metric,)).made(offline=offline)


def victim(
    text: str,
    *,
    classes: int,
    size: int,
    seed: int,
    device: torch.device | str = "cpu",
    offline: bool = False,
) -> Model:
    """A victim, its weights drawn with `seed`.

    Those of `VICTIMS` are in eval mode, with ImageNet's normalisation. One's own is a `Model`
    (normalisation and loss included), a `torch.nn.Module` that takes images normalised with
    ImageNet's mean and standard deviation, or what makes one: it is handed `classes` and `size`
    if it has parameters of these names without a default.

    Args:
        text: a key of `VICTIMS`, or one's own.
        classes: of a victim that does not decide that itself.
        size: side of the private images.
        seed: of the weights.
        device: where they are put.
        offline: for those that fetch weights: refuse to.

    Raises:
        InputError: an unknown name, or one's own that cannot be imported or called.
    """
    if not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"expected at least 2 classes, at most {MOST_CLASSES:,}, got {classes}")
    if not 1 <= size <= LARGEST_SIDE:
        raise InputError(f"expected images of at most {LARGEST_SIDE} pixels a side, got {size}")
    offered = {"classes": classes, "size": size, "offline": offline}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Found[Model | nn.Module] = resolve(text, VICTIMS, "victim", (Model, nn.Module))
        if found.own:
            offered = {name: value for name, value in offered.items() if found.needs(name)}
        made = found.made(**offered)
    if isinstance(made, Model):
        return replace(made, module=made.module.to(device))
    module = made if found.own else made.eval()
    return Model(module=module.to(device), mean=IMAGENET_MEAN, std=IMAGENET_STD)
