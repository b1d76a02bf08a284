"""`gifd attack`: distribute private images to clients and attack each client's update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog, terminal
from gifd.campaign.trial import Trial
from gifd.cli.choices import (
    chosen_attacker,
    chosen_attacks,
    chosen_grant,
    chosen_labels,
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
    FormerSize,
    MaxMemory,
    Offline,
    Out,
    Preset,
    Prior,
    PriorOption,
    Protocol,
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
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.images import framing, read_image
from gifd.terminal import one_line_errors


@one_line_errors
def attack(
    images: Annotated[list[Path], typer.Argument(help="Private images.")],
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="E.g. 'gifd', 'gifd:features=3,smoothing=0' ('gifd list'), or your own: "
            "'file.py:object'; may be repeated. Default: gifd.",
        ),
    ] = None,
    prior: Prior = None,
    prior_option: PriorOption = None,
    victim: Victim = "resnet18",
    public: PublicImages = None,
    preset: Preset = "strongest",
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Extension of 'strongest' to switch off in all attacks; may be repeated."
        ),
    ] = None,
    steps: Steps = None,
    evaluations: Evaluations = None,
    restarts: Restarts = None,
    batch_size: Annotated[
        int, typer.Option(help="Images per client, in the given order.", min=1)
    ] = 1,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of the images, or numbers (1,0,1), as the victim's loss takes: one for "
            "all, or one each. Default: class 0."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Instead of --label: a regular expression whose group is the class in a file name."
        ),
    ] = None,
    grant_labels: Annotated[
        bool, typer.Option("--grant-labels", help="Grant the attacker the labels.")
    ] = False,
    grant_batch_norm: Annotated[
        str | None,
        typer.Option(
            help="Grant the attacker batch-norm statistics: 'running', or of the private 'batch'."
        ),
    ] = None,
    defense: Annotated[
        list[str] | None,
        typer.Option(
            help="E.g. 'sparsify:rate=0.9' ('gifd list'), or your own: 'file.py:object'; may be "
            "repeated, applied in order."
        ),
    ] = None,
    attacker: Annotated[
        str,
        typer.Option(
            help="'static' ignores the defences, 'adaptive' knows them, 'estimated' guesses them."
        ),
    ] = "adaptive",
    protocol: Protocol = "fedsgd",
    classes: Classes = 10,
    label_mapping: Annotated[
        str | None,
        typer.Option(
            help="For a conditional prior with other classes: auto, on, off, or a remapper file. "
            "Default: auto."
        ),
    ] = None,
    shape: Shape = None,
    size: FormerSize = None,
    victim_seed: VictimSeed = 0,
    seed: Seed = 0,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Additional metric: 'lpips' (extra 'lpips'), or your own: 'file.py:object'; may "
            "be repeated."
        ),
    ] = None,
    lpips: Annotated[bool, typer.Option("--lpips", hidden=True)] = False,
    offline: Offline = False,
    out: Out = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per trial on stdout.")
    ] = False,
) -> None:
    """Compute each client's update, attack it, score and report the reconstructions."""
    if len(images) % batch_size:
        raise InputError(
            f"expected a number of images that {batch_size} divides (--batch-size), got "
            f"{len(images)}: give more or fewer"
        )
    knows = chosen_attacker(attacker)
    model, image_shape = chosen_victim(
        victim,
        classes=classes,
        shape=shape_of(shape, size),
        seed=victim_seed,
        device=device_of(device, max_memory),
        offline=offline,
    )
    task = model.task(image_shape)  # your own victim decides it
    classes, truth = task.classes, chosen_labels(images, label or (), labels, task)
    client = Client(
        model=model,
        protocol=catalog.protocol(protocol, images=batch_size),
        grant_labels=grant_labels,
        grant_batch_norm=chosen_grant(grant_batch_norm),
        defenses=tuple(catalog.defense(text) for text in defense or ()),
        seed=seed,
    )
    built = chosen_attacks(
        attacks or ["gifd"],
        load=lambda: chosen_prior(
            prior, shape=image_shape, options=prior_option or (), offline=offline
        ),
        preset=preset,
        without=without or (),
        steps=steps,
        evaluations=evaluations,
        restarts=restarts,
        mapped=lambda prior: chosen_mapping(label_mapping or "auto", prior, classes),
        public=chosen_public(public, attacks or ["gifd"], shape=image_shape),
    )
    of_prior = {
        "--prior": prior,
        "--prior-option": prior_option,
        "--label-mapping": label_mapping,
    }
    unused = [option for option, value in of_prior.items() if value]
    if unused and not any(each.prior for each in built):
        terminal.note(f"no attack here uses a prior: {', '.join(unused)} not used")
    asked = [*(metric or ()), *(["lpips"] if lpips else [])]  # --lpips: its name until 0.2
    metrics = chosen_metrics(asked, shape=image_shape, offline=offline)
    store = store_at(out)
    sizes = _sizes(images, image_shape[1:])
    origin = {"name": victim, "classes": classes, "seed": victim_seed}

    def of_client(first: int) -> Iterator[Trial]:
        own = slice(first, first + batch_size)
        read = partial(read_image, size=image_shape[1:], channels=image_shape[0])
        batch = torch.stack([read(path) for path in images[own]])
        for each in built:
            yield Trial(
                names=[path.name for path in images[own]],
                images=batch,
                labels=truth[own],
                client=client,
                victim=origin,
                attack=each,
                metrics=metrics,
                attacker=knows,
                seed=seed,
                sizes=[sizes.get(path) for path in images[own]],
            )

    batches = (partial(of_client, first) for first in range(0, len(images), batch_size))
    run_trials(batches, store, json=json)


def _sizes(images: list[Path], size: tuple[int, int]) -> dict[Path, tuple[int, int]]:
    """The width and height of each readable image; crops and enlargements are noted, once."""
    found: dict[Path, tuple[int, int]] = {}
    for path in images:
        with suppress(InputError):  # reported by its trial
            read_image(path, size=size, told=partial(found.__setitem__, path))
    made = framing(list(found.values()), size)
    if made:
        terminal.note(made)
    return found
