"""Choices: from names on the command line to attacks, victims and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from gifd import catalog, terminal
from gifd.attacker.observe import Attacker, known_attacker
from gifd.attacks import Attack, LabelMapping
from gifd.campaign.renamed import ATTACKERS
from gifd.errors import GifdError, InputError, ModelError, one_line
from gifd.images import MOST_CLASSES, class_in, read_images
from gifd.metrics import Metric
from gifd.model import Model
from gifd.priors import Generator
from gifd.search import Public, Source
from gifd.task import Task
from gifd.training import REMAPPER_STEPS
from gifd.victims import normalization

MODAL = (_NormBase, _DropoutNd, nn.MultiheadAttention, nn.RNNBase)
"""Layers that behave differently in training mode."""
STANDARD = ("psnr", "ssim", "mse", "stlpips")
"""The metrics in every record."""


def chosen_attacks(
    names: Sequence[str],
    *,
    load: Callable[[], Generator | None],
    preset: str,
    without: Sequence[str],
    steps: int | None,
    evaluations: int | None,
    restarts: int | None,
    mapped: Callable[[Generator], LabelMapping | None] = lambda prior: None,
    public: Source | None = None,
) -> list[Attack]:
    """The attacks, by name or your own; the prior is loaded only if one of them uses it.

    Raises:
        InputError: also if no attack uses an extension in `without`.
    """
    generator = load() if any(catalog.needs_prior(name) for name in names) else None
    label_mapping = None if generator is None else mapped(generator)
    in_use = [
        catalog.attack(name, prior=generator, preset=preset).extensions if without else {}
        for name in names
    ]
    on = sorted({extension for each in in_use for extension in each})
    for extension in without:
        if extension not in on:
            raise InputError(
                f"expected --without an extension in use ({', '.join(on) or 'none is'}), "
                f"got '{extension}'"
            )
    return [
        catalog.attack(
            name,
            prior=generator,
            preset=preset,
            without=[extension for extension in without if extension in own],
            steps=steps,
            evaluations=evaluations,
            restarts=restarts,
            label_mapping=label_mapping,
            public=public,
        )
        for name, own in zip(names, in_use, strict=True)
    ]


def chosen_public(
    path: Path | None,
    names: Sequence[str],
    *,
    shape: tuple[int, int, int],
    quiet: bool = False,
) -> Source | None:
    """The public images of a folder or zip, if an attack learns from them.

    Raises:
        InputError: no such folder or zip, or an image in it that cannot be read.
    """
    if path is None:
        return None
    if not any(catalog.takes_public(name) for name in names):
        if not quiet:
            terminal.note("no attack here learns from images: --public not used")
        return None
    channels, *size = shape
    found = read_images(path, size=(size[0], size[1]), channels=channels)
    images = torch.stack([image for _, image in found])
    return Public(images=images, name=path.name)


def chosen_prior(
    name: str | None,
    *,
    shape: tuple[int, int, int],
    options: Sequence[str] = (),
    offline: bool = False,
) -> Generator | None:
    """The prior for images of this shape, `faces64` by default; none if it is called 'none'."""
    if name == "none":
        return None
    return catalog.prior(name or "faces64", shape=shape, options=options, offline=offline)


def chosen_victim(
    text: str,
    *,
    classes: int,
    shape: tuple[int | None, int, int],
    seed: int,
    device: torch.device | str = "cpu",
    offline: bool = False,
) -> tuple[Model, tuple[int, int, int]]:
    """The victim, and the shape of its images; training mode is noted if it affects a layer.

    Args:
        text: see `catalog.victim`.
        classes: likewise.
        shape: of the private images; channels of None are the victim's.
        seed: see `catalog.victim`.
        device: likewise.
        offline: likewise.

    Raises:
        InputError: other channels than the victim's, or a size that it does not take.
    """
    channels, height, width = shape
    model = catalog.victim(
        text,
        classes=classes,
        size=(height, width),
        seed=seed,
        channels=channels,
        device=device,
        offline=offline,
    )
    if channels not in (None, len(model.mean)):
        raise InputError(
            f"expected --shape with the victim's {len(model.mean)} channels, got {channels}"
        )
    image_shape = (len(model.mean), height, width)
    like = next(iter(model.parameters.values()))
    try:
        with torch.no_grad():
            model.tried(like.new_zeros(2, *image_shape))  # batch norm may refuse a single one
    except ModelError as error:
        written = ",".join(map(str, image_shape))
        raise InputError(
            f"expected a victim that takes images of --shape {written}, got: {error}"
        ) from None
    if any(part.training and isinstance(part, MODAL) for part in model.module.modules()):
        terminal.note(
            f"'{text}' is in training mode: batch norms use the batch's own statistics, dropout is "
            "random. That is right if the client trained in this mode; otherwise call .eval() "
            "before you return it"
        )
    own = catalog.split(text, catalog.VICTIMS)[0] not in catalog.VICTIMS
    if own and tuple(model.mean) == normalization(len(model.mean))[0]:
        terminal.note(
            f"images are normalised by ImageNet's mean and deviation for '{text}': return a "
            "gifd.Model with the client's own normalisation if it has another"
        )
    return model, image_shape


def chosen_mapping(how: str, prior: Generator, classes: int) -> LabelMapping | None:
    """The label mapping; its remapper is trained with a progress bar if none is cached."""
    note = (
        f"the classes of {prior} are not the victim's: a classifier is trained on its samples, "
        "once (--label-mapping off skips this)"
    )
    with terminal.steps(f"remapper of {prior.name}", REMAPPER_STEPS, note) as callback:
        return catalog.label_mapping(how, prior, classes=classes, callback=callback)


def chosen_labels(
    images: Sequence[Path], given: Sequence[str], pattern: str | None, task: Task
) -> Shaped[Tensor, "N *T"]:
    """The images' labels: one for all, one each, or classes from their names.

    Args:
        images: files.
        given: each a class, or numbers separated by commas, as the task needs; none: class 0.
        pattern: a regular expression whose group is the class in a file's name.
        task: of the victim.

    Raises:
        InputError: labels of another kind or number.
    """
    if pattern is not None:
        return torch.tensor([class_in(path.name, pattern) for path in images])
    if not given and task.plain:
        given = ["0"]
    if len(given) not in (1, len(images)):
        raise InputError(
            f"expected one --label for all images or one for each of {len(images)}, got "
            f"{len(given)}"
        )
    found = torch.stack([read_label(text, task) for text in given])
    return found.repeat(len(images) // len(given), *(1 for _ in task.targets))


def read_label(text: str, task: Task) -> Shaped[Tensor, "*T"]:
    """One image's label from a text: a class, or numbers separated by commas.

    Raises:
        InputError: another kind than the task's, or one that has too many numbers for a text.
    """
    if task.targets and not task.numbers:
        raise InputError(
            "expected a victim of one class or of numbers an image, got one of a class at each of "
            f"{' x '.join(map(str, task.targets))} places: attack it from Python"
        )
    try:
        if not task.numbers:
            number = int(text)
            if not 0 <= number < MOST_CLASSES:
                raise ValueError
            return torch.tensor(number)
        return torch.tensor([float(part) for part in text.split(",")]).reshape(task.targets)
    except (ValueError, RuntimeError):
        count = math.prod(task.targets)
        wanted = (
            f"{count} number{'s' * (count > 1)} separated by commas, which the victim's loss takes"
            if task.numbers
            else "a class, from 0 to one less than the classes"
        )
        raise InputError(f"expected --label as {wanted}, got '{one_line(text, 40)}'") from None


def chosen_attacker(name: str) -> Attacker:
    """The attacker by name; a former name gives a note."""
    if name in ATTACKERS:
        terminal.note(f"the attacker '{name}' is now called '{ATTACKERS[name]}': use that word")
    return known_attacker(ATTACKERS.get(name, name))


def chosen_grant(statistics: str | None) -> Literal["running", "batch"] | None:
    """Which batch-norm statistics are granted."""
    if statistics in (None, "running", "batch"):
        return statistics  # type: ignore[return-value]
    raise InputError(f"expected statistics of 'running' or 'batch', got '{statistics}'")


def chosen_metrics(
    texts: Sequence[str] = (),
    *,
    shape: tuple[int, int, int] = (3, 64, 64),
    offline: bool = False,
) -> list[Metric]:
    """The standard metrics and the requested ones; the last one of each name.

    Each is called once, so that missing weights or extras are reported before the search. A
    standard one that cannot compare such images is left out, with a note.

    Raises:
        InputError: also if a requested metric cannot compare two images of this shape.
    """
    blank = torch.zeros(1, *shape)
    metrics: dict[str, Metric] = {}
    for text in (*STANDARD, *texts):
        metric = catalog.metric(text, offline=offline)
        try:
            name, result = metric.name, tuple(metric(blank, blank).shape)
        except InputError as error:
            if text not in STANDARD or text in texts:
                raise
            terminal.note(f"not scored by {metric.name}: {error}")
            continue
        except GifdError:
            raise
        except Exception as error:  # of the user's code
            raise InputError(
                f"expected the metric '{text}' to compare two images, it raised "
                f"{catalog.told(error)}"
            ) from None
        if result != (1,):
            raise InputError(
                f"expected the metric '{text}' to return a value per pair, (1,), got shape {result}"
            )
        metrics[name] = metric
    return list(metrics.values())
