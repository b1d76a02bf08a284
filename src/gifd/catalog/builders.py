"""The builders: from a text and settings to an object.

Every text is a name of the catalogue or the user's own object, with or without options, in one of
the forms of `gifd.catalog.resolver`.
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
from gifd.catalog.protocols import PROTOCOLS
from gifd.catalog.resolver import Found, resolve, split
from gifd.catalog.tables import ATTACKS, BY_HAND, DEFENSES, LABELS, METRICS, PRIORS, VICTIMS
from gifd.errors import InputError
from gifd.federation.defenses import Defense
from gifd.federation.protocols import Protocol
from gifd.files import is_file, is_folder
from gifd.images import MOST_CLASSES, sides
from gifd.leakage.counts import LabelEstimator
from gifd.metrics import Metric
from gifd.model import Model
from gifd.priors import Generator, read_checkpoint, read_remapper, write_remapper
from gifd.search import Source
from gifd.training import train_remapper
from gifd.victims import Size, normalization
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
    public: Source | None = None,
) -> Attack:
    """Build an attack.

    The user's own attack is a function like the built-in ones: it receives `prior`, `public`,
    `preset` and `restarts` if it has parameters of these names, and returns an `Attack`.

    Args:
        text: a key of `ATTACKS` or the user's own; its options are the function's arguments.
        prior: for attacks that use one.
        preset: 'paper', 'gifd-paper' or 'strongest'.
        without: extensions to switch off, if it has them.
        steps: total steps per restart over its phases; by default the preset's.
        evaluations: instead of steps, victim gradients to spend, over all restarts.
        restarts: by default the preset's.
        label_mapping: for attacks with a conditional prior.
        public: images that the attacker has, for attacks that learn from some.

    Raises:
        InputError: an unknown name, a wrong option, a prior missing, or a number out of range.
    """
    found = _attack(text)
    if restarts is not None and restarts < 1:
        raise InputError(f"expected at least 1 restart, got {restarts}")
    if found.needs("prior") and prior is None:
        raise InputError(f"expected a prior for '{text}', got none: choose {', '.join(PRIORS)}")
    offered = {
        "prior": prior,
        "public": public,
        "preset": known_preset(preset),
        "restarts": restarts,
    }
    for extension in without:
        if not found.takes(extension):
            raise InputError(
                f"expected an extension of '{text}' to switch off, got '{extension}': see "
                "'gifd list'"
            )
    off = {n: False if n == "best" else 0.0 for n in without}
    built = found.made(**offered, **off)
    if restarts is not None and not found.takes("restarts"):
        built = replace(built, restarts=restarts)
    if built.prior is not None:
        built = replace(built, label_mapping=label_mapping)
    if steps is not None and evaluations is not None:
        raise InputError("expected steps or evaluations, got both: choose one")
    if evaluations is not None:
        return built.with_evaluations(evaluations)
    return built if steps is None else built.with_steps(steps)


def needs_prior(text: str) -> bool:
    """Whether an attack takes a prior.

    Raises:
        InputError: see `attack`.
    """
    return _attack(text).takes("prior")


def takes_public(text: str) -> bool:
    """Whether an attack takes public images.

    Raises:
        InputError: see `attack`.
    """
    return _attack(text).takes("public")


def _attack(text: str) -> Found[Attack]:
    return resolve(text, ATTACKS, "attack", (Attack,))


def prior(
    text: str,
    *,
    shape: tuple[int, int, int] | None = None,
    options: Sequence[str] = (),
    offline: bool = False,
) -> Generator:
    """A prior by name, downloaded if it is not cached; the user's own; or from a checkpoint.

    Args:
        text: a key of `PRIORS`, the user's own, or the path of a checkpoint file or folder (see
            `gifd.priors.checkpoints` for the formats).
        shape: (C, H, W) of the private images: a prior of larger or coloured images is framed to
            it (`Generator.framed`).
        options: further options, each `key=value`; for a checkpoint, those of its architecture.
        offline: download nothing.

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
        built = checkpoint.generator(name=Path(text).stem, **checkpoint.parse(options))
    else:
        found = resolve(text, PRIORS, "prior", (Generator,), options, also=", a checkpoint file")
        built = found.made(offline=offline)
    if shape is None or not built.frames(shape):
        return built  # an attack refuses one that does not fit, and says both shapes
    return built.framed(shape)


def label_mapping(
    how: str,
    prior: Generator,
    *,
    classes: int,
    callback: Callable[[int, float], None] | None = None,
) -> LabelMapping | None:
    """The label mapping for a prior and a victim.

    Args:
        how: 'auto' maps if the prior and the victim have different numbers of classes, 'on'
            always, 'off' never; or the file of a remapper. For 'auto' and 'on' a remapper is
            trained on samples of the prior and cached.
        prior: any; an unconditional one needs no mapping.
        classes: number of the victim's classes.
        callback: called with every step of the training and its loss.

    Raises:
        InputError: a remapper for another prior, or a mapping for an unconditional prior.
        WeightsError: a file that is not a remapper.
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
    """The cache file of the remapper for these weights."""
    digest = hashlib.sha256()
    for stage in prior.stages:
        for tensor in stage.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return cache_dir() / "remappers" / f"{prior.name[:80]}-{digest.hexdigest()[:16]}.safetensors"


def defense(text: str) -> Defense:
    """A defence: `name:option=value,option=value`, or the user's own.

    Raises:
        InputError: an unknown name, an unknown or missing option, or a value out of range.
    """
    return resolve(text, DEFENSES, "defence", (Defense,)).made()


def protocol(text: str, *, images: int) -> Protocol:
    """A protocol: `name:option=value,option=value`, or the user's own.

    Args:
        text: a key of `PROTOCOLS`, or the user's own, which receives `images` if it has a
            parameter of this name.
        images: of the client.

    Raises:
        InputError: an unknown name, an unknown or missing option, or a value out of range.
    """
    return resolve(text, PROTOCOLS, "protocol", (Protocol,)).made(images=images)


def label_estimator(text: str) -> LabelEstimator:
    """An estimator of label counts: a key of `LABELS`, or the user's own.

    Raises:
        InputError: an unknown name or option.
    """
    return resolve(text, LABELS, "estimator", (LabelEstimator,)).made()


def metric(text: str, *, offline: bool = False) -> Metric:
    """A metric: a key of `METRICS`, or the user's own.

    Args:
        text: its name.
        offline: download nothing.

    Raises:
        InputError: an unknown name or option.
    """
    return resolve(text, METRICS, "metric", (Metric,)).made(offline=offline)


def victim(
    text: str,
    *,
    classes: int,
    size: Size,
    seed: int,
    channels: int | None = None,
    device: torch.device | str = "cpu",
    offline: bool = False,
) -> Model:
    """A victim, with random weights from `seed` unless it is trained.

    Those of `VICTIMS` are in eval mode, with ImageNet's normalisation. The user's own is a `Model`
    (with its normalisation and loss), a `torch.nn.Module` that takes images normalised with
    ImageNet's mean and standard deviation, or a function that makes one: it receives `classes`,
    `size` and `channels` if it has parameters of these names without a default.

    Args:
        text: a key of `VICTIMS`, or the user's own.
        classes: number of classes, unless the victim decides it.
        size: side of the private images, or their height and width.
        seed: seed of the weights.
        channels: of the images; by default 3, or those of a module's first convolution.
        device: device of the weights.
        offline: download nothing.

    Raises:
        InputError: an unknown name, or the user's own that cannot be imported or called.
    """
    if not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"expected at least 2 classes, at most {MOST_CLASSES:,}, got {classes}")
    height, width = sides(size)
    offered: dict[str, object] = {
        "classes": classes,
        "size": height if height == width else (height, width),
        "channels": 3 if channels is None else channels,
        "offline": offline,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: Found[Model | nn.Module] = resolve(text, VICTIMS, "victim", (Model, nn.Module))
        if found.own:
            offered = {name: value for name, value in offered.items() if found.needs(name)}
        elif channels not in (None, 3) and not found.takes("channels"):
            raise InputError(f"expected images of 3 channels for '{text}', got {channels}")
        made = found.made(**offered)
    if isinstance(made, Model):
        return replace(made, module=made.module.to(device))
    module = made if found.own else made.eval()
    first = (part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
    mean, std = normalization(next(first, 3) if channels is None else channels)
    return Model(module=module.to(device), mean=mean, std=std)
