"""`gifd invert`: reconstruct the images behind an update that was captured elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from gifd import catalog, terminal
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacker.rounds import rounds
from gifd.audit import Fit, fit
from gifd.campaign.inversion import Inversion
from gifd.captures import read_capture, read_weights
from gifd.cli.choices import (
    chosen_attacks,
    chosen_mapping,
    chosen_metrics,
    chosen_prior,
    chosen_public,
    chosen_victim,
)
from gifd.cli.options import (
    Classes,
    Device,
    Evaluations,
    MaxMemory,
    Offline,
    Out,
    Preset,
    Prior,
    PriorOption,
    PublicImages,
    Restarts,
    Seed,
    Shape,
    Steps,
    Victim,
    VictimSeed,
    device_of,
    shape_of,
    store_at,
)
from gifd.cli.trials import run_trials
from gifd.errors import InputError, ModelError, UnexplainedError
from gifd.federation.upload import Upload
from gifd.images import read_image, read_images
from gifd.leakage.labels import label_hypotheses
from gifd.model import Model
from gifd.terminal import one_line_errors
from gifd.updates import Update

DEFAULT = ("peel", "ensemble")
"""The exact inversion and, where the update does not show enough for it, the best other attack."""


@one_line_errors
def invert(
    updates: Annotated[
        list[Path],
        typer.Argument(
            metavar="UPDATE...",
            help="The client's update, or its whole weights: safetensors, torch.save, or .npz. "
            "Several: of rounds in which it had the same images.",
        ),
    ],
    before: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of the weights that the client received, once for each update. Default: "
            "those of the victim."
        ),
    ] = None,
    victim: Victim = "resnet18",
    classes: Classes = 10,
    victim_seed: VictimSeed = 0,
    shape: Shape = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            help="Number of private images. Default: 1. May be repeated if you do not know it: the "
            "number that fits the update best is used.",
            min=1,
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="What the client computed: 'fedsgd' (the default), 'fedavg:lr=0.01,epochs=2,"
            "batch_size=8,optimizer=adam' ('gifd list'), or your own: 'file.py:object'. May be "
            "repeated if you do not know it: the one that fits the update best is used."
        ),
    ] = None,
    defense: Annotated[
        list[str] | None,
        typer.Option(help="A defence that the client is believed to use; may be repeated."),
    ] = None,
    label: Annotated[
        list[int] | None,
        typer.Option(help="Class of each private image, if you know it; may be repeated."),
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="As of 'gifd attack'; may be repeated. Default: peel, and ensemble if the update "
            "does not show enough for it.",
        ),
    ] = None,
    prior: Prior = None,
    prior_option: PriorOption = None,
    public: PublicImages = None,
    preset: Preset = "strongest",
    steps: Steps = None,
    evaluations: Evaluations = None,
    restarts: Restarts = None,
    private: Annotated[
        list[Path] | None,
        typer.Option(
            help="Private images to compare with, or their folder, if you have them; may be "
            "repeated."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    offline: Offline = False,
    out: Out = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per attack on stdout.")
    ] = False,
) -> None:
    """Reconstruct the images behind a captured update, and say how far to believe the result."""
    model, image_shape = chosen_victim(
        victim,
        classes=classes,
        shape=shape_of(shape),
        seed=victim_seed,
        device=device_of(device, max_memory),
        offline=offline,
    )
    try:
        classes = model.classes(image_shape)
    except ModelError as error:
        raise InputError(
            f"expected a victim that takes images of --shape {_written(image_shape)}, got: {error}"
        ) from None
    names, truth = _truth(private or (), image_shape)
    origin: dict[str, object] = {"name": victim, "classes": classes, "seed": victim_seed}
    if before:
        origin["weights"] = ", ".join(path.name for path in before)
    name = updates[0].name + (f" and {len(updates) - 1} more" if len(updates) > 1 else "")
    captures, notes = _read(updates, before or [], model)
    if not before:
        notes.append("no --before: the client is taken to have received the victim's own weights")
    defenses = tuple(catalog.defense(text) for text in defense or ())
    for note in notes:
        terminal.note(note)
    considered: dict[str, tuple[Observation, Fit]] = {}
    for size in batch_size or [1]:
        for text in protocol or ["fedsgd"]:
            believed = catalog.protocol(text, images=size)
            uploads = [
                Upload(
                    update=update,
                    model=own,
                    protocol=believed,
                    image_shape=image_shape,
                    batch_size=size,
                    labels=torch.tensor(label) if label else None,
                    defended=bool(defenses),
                )
                for own, update in captures
            ]
            observation = rounds([observe(upload, defenses=defenses) for upload in uploads])
            images = f"{size} image{'s' if size > 1 else ''}"
            considered[f"{text} on {images}"] = observation, fit(observation, seed=seed)
    best = min(considered, key=lambda told: considered[told][1].misfit)
    if len(considered) > 1:
        for told, (_, each) in considered.items():
            terminal.note(f"{told}: misfit {each.misfit:.2f}{', used' * (told == best)}")
    observation, fitted = considered[best]
    terminal.note(str(fitted))
    try:
        label_hypotheses(observation)
    except (InputError, ModelError):
        terminal.note(
            "the update does not show the labels under this assumption: give --label for each "
            "image, or another --protocol"
        )
    images_sent = observation.ledger.batch_size
    if truth is not None and len(truth) != images_sent:
        raise InputError(
            f"expected as many --private images as --batch-size, {images_sent}, got {len(truth)}"
        )
    metrics = chosen_metrics(shape=image_shape, offline=offline) if truth is not None else []
    store = store_at(out)
    older = len(list(store))

    def attempts() -> Iterator[Inversion]:
        for wanted in attacks or DEFAULT:
            if not attacks and len(list(store)) > older:
                return  # what was found is exact
            (built,) = chosen_attacks(
                [wanted],
                load=lambda: chosen_prior(
                    prior, shape=image_shape, options=prior_option or (), offline=offline
                ),
                preset=preset,
                without=(),
                steps=steps,
                evaluations=evaluations,
                restarts=restarts,
                mapped=lambda prior: chosen_mapping("auto", prior, classes),
                public=chosen_public(public, [wanted], shape=image_shape, quiet=not attacks),
            )
            yield Inversion(
                attack=built,
                seed=seed,
                observation=observation,
                update=name,
                notes=notes,
                fit=fitted,
                considered={told: each.misfit for told, (_, each) in considered.items()},
                victim=origin,
                truth=truth,
                names=names,
                metrics=metrics,
            )

    run_trials([attempts], store, json=json, expected=() if attacks else (UnexplainedError,))


def _read(
    updates: list[Path], before: list[Path], model: Model
) -> tuple[list[tuple[Model, Update]], list[str]]:
    """Each update with the model of its round, and what was changed so that they fit."""
    if before and len(before) != len(updates):
        raise InputError(
            f"expected --before once for each of {len(updates)} updates, got {len(before)}"
        )
    found, notes = [], dict[str, None]()
    for place, path in enumerate(updates):
        own = model
        if before:
            own, told = read_weights(before[place], model)
            notes |= dict.fromkeys(told)
        capture = read_capture(path, own)
        notes |= dict.fromkeys(capture.notes)
        found.append((own, capture.update))
    return found, list(notes)


def _written(shape: tuple[int, int, int]) -> str:
    return ",".join(map(str, shape))


def _truth(
    paths: tuple[Path, ...] | list[Path], shape: tuple[int, int, int]
) -> tuple[list[str] | None, Tensor | None]:
    """Names and pixels of the private images."""
    if not paths:
        return None, None
    channels, size = shape[0], shape[1:]
    found: list[tuple[str, Tensor]] = []
    for path in paths:
        if path.is_dir() or path.suffix == ".zip":
            found += read_images(path, size=size, channels=channels)
        else:
            found.append((path.name, read_image(path, size=size, channels=channels)))
    return [name for name, _ in found], torch.stack([image for _, image in found])
