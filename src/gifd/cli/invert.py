"""`gifd invert`: reconstruct the images behind an update that was captured elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from gifd import catalog, terminal
from gifd.campaign.inversion import Inversion
from gifd.captures import Round, read_capture, read_rounds, read_weights
from gifd.cli.beliefs import assumptions, completed, judged
from gifd.cli.choices import (
    chosen_attacks,
    chosen_mapping,
    chosen_metrics,
    chosen_prior,
    chosen_public,
    chosen_victim,
    read_label,
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
from gifd.errors import InputError, UnexplainedError
from gifd.federation.defenses import Hide
from gifd.files import is_folder
from gifd.images import read_image, read_images
from gifd.model import Model
from gifd.terminal import one_line_errors

DEFAULT = ("peel", "ensemble")
"""The exact inversion and, where the update does not show enough for it, the best other attack."""


@one_line_errors
def invert(
    updates: Annotated[
        list[Path],
        typer.Argument(
            metavar="UPDATE...",
            help="The client's update, or its whole weights: safetensors, torch.save, or .npz. "
            "Several: of rounds in which it had the same images. Or the folder of such rounds: "
            "folders with before.* and client-<name>.* or after.*.",
        ),
    ],
    before: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of the weights that the client received, once for each update. Default: "
            "those of the victim."
        ),
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="Of a folder of rounds, the client. Default: the only one.")
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
        typer.Option(
            help="A defence that the client is believed to use; may be repeated. "
            "'hide:parts=head': what is not in the update, or encrypted."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of each private image, or its numbers (1,0,1), if you know them; may be "
            "repeated."
        ),
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
    assumed = assumptions(protocol or ["fedsgd"], batch_size or [1])
    defenses = tuple(catalog.defense(text) for text in defense or ())
    model, image_shape = chosen_victim(
        victim,
        classes=classes,
        shape=shape_of(shape, smallest=1),
        seed=victim_seed,
        device=device_of(device, max_memory),
        offline=offline,
    )
    task = model.task(image_shape)
    classes = task.classes
    names, truth = _truth(private or (), image_shape)
    origin: dict[str, object] = {"name": victim, "classes": classes, "seed": victim_seed}
    hides = [each for each in defenses if isinstance(each, Hide)]
    hidden = {name for each in hides for name in each.hidden(model, image_shape)}
    captured = _read(updates, before or [], client, model, hidden)
    name = _name(captured, updates)
    known = [each.before for each in captured if each.before]
    if known:
        origin["weights"] = ", ".join(known)
    notes = list(dict.fromkeys(n for each in captured for n in (*each.notes, *each.capture.notes)))
    if len(captured) > 1:
        notes.append(f"{len(captured)} rounds are taken to be on the same images")
    if not known:
        notes.append("no --before: the client is taken to have received the victim's own weights")
    for note in notes:
        terminal.note(note)
    beliefs = judged(
        assumed,
        captured,
        image_shape=image_shape,
        labels=torch.stack([read_label(text, task) for text in label]) if label else None,
        defenses=defenses,
        seed=seed,
    )
    for each in beliefs if len(beliefs) > 1 else ():
        other = ", another number of local steps" * each.refuted
        used = ", used" * (each is beliefs[0])
        terminal.note(f"{each.name}: misfit {each.fit.misfit:.2f}{other}{used}")
    best = completed(beliefs[0], captured, seed)
    for note in best.notes:
        terminal.note(note)
    notes += [terminal.in_shell(note) for note in best.notes if note != str(best.fit)]
    observation = best.observation
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
                fit=best.fit,
                considered={each.name: each.fit.misfit for each in beliefs},
                victim=origin,
                truth=truth,
                names=names,
                metrics=metrics,
            )

    run_trials([attempts], store, json=json, expected=() if attacks else (UnexplainedError,))


def _read(
    updates: list[Path],
    before: list[Path],
    client: str | None,
    model: Model,
    hidden: Collection[str],
) -> tuple[Round, ...]:
    """The rounds of a folder, or each update with the weights before it."""
    folders = [path for path in updates if is_folder(path)]
    if folders and (before or len(updates) > 1):
        raise InputError(
            "expected one folder of rounds, which hold their own weights before, or files, got "
            f"{len(updates)} updates and {len(before)} times --before"
        )
    if folders:
        return read_rounds(folders[0], model, client=client, hidden=hidden)
    if client is not None:
        raise InputError(f"expected --client with a folder of rounds, got {len(updates)} files")
    if before and len(before) != len(updates):
        raise InputError(
            f"expected --before once for each of {len(updates)} updates, got {len(before)}"
        )
    found = []
    for place, path in enumerate(updates):
        own, told = read_weights(before[place], model, hidden=hidden) if before else (model, ())
        found.append(
            Round(
                before=before[place].name if before else "",
                after=path.name,
                model=own,
                capture=read_capture(path, own, hidden=hidden),
                notes=told,
            )
        )
    return tuple(found)


def _name(captured: Sequence[Round], updates: Sequence[Path]) -> str:
    """What the record calls the update."""
    name, more = captured[0].after, len(captured) - 1
    folder = f"{updates[0].resolve().name}/" if is_folder(updates[0]) else ""
    return f"{folder}{name}" + (f" and {more} more" if more else "")


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
