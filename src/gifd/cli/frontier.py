"""`gifd frontier`: leakage against accuracy, for each defence and strength."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import ValidationError

from gifd import catalog, terminal
from gifd.campaign.point import Point
from gifd.campaign.sweep import Keys, Results, Row, answered, drawn, seeds_of
from gifd.campaign.trial import Trial
from gifd.campaign.utility import Federation
from gifd.cli.choices import (
    chosen_attacker,
    chosen_attacks,
    chosen_metrics,
    chosen_prior,
    chosen_victim,
)
from gifd.cli.options import (
    Device,
    Evaluations,
    FormerSize,
    MaxMemory,
    Offline,
    Restarts,
    Seed,
    Shape,
    device_of,
    shape_of,
)
from gifd.errors import InputError, one_line
from gifd.federation.client import Client
from gifd.federation.defenses.dpsgd import accountant_installed
from gifd.images import class_in, framing, read_images
from gifd.report.frontier import write_frontier
from gifd.terminal import one_line_errors
from gifd.training import read_image_set

GRID = (
    "noise:std=0.001/0.003/0.01/0.03",
    "clip:norm=0.3/0.1",
    "sparsify:rate=0.5/0.9/0.99",
    "soteria:rate=0.4/0.8",
    "quantize:scheme=int8/ternary/sign",
    "dpsgd:noise=0.003/0.01/0.03",
)
SCORES = ("psnr", "ssim", "stlpips")
ROW = {"image", "attack", "preset", "evaluations", "distance", "seed", *SCORES}
VICTIM_SEED = 0
"""There is one victim, the model under audit, where the federation also begins."""


@one_line_errors
def frontier(
    images: Annotated[Path, typer.Argument(help="Private images: a folder or zip.")],
    data: Annotated[Path, typer.Option(help="Labelled training images: a folder or zip.")],
    labels: Annotated[
        str,
        typer.Option(help="Regular expression whose group is the class in a path, for both sets."),
    ] = "class([0-9]+)",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="E.g. 'noise:std=0.001/0.01/0.1'; may be repeated. Default: six defences."
        ),
    ] = None,
    attack: Annotated[str, typer.Option(help="From 'gifd list'.")] = "gifd",
    preset: str = "strongest",
    attacker: Annotated[
        list[str] | None,
        typer.Option(
            help="static, adaptive or estimated; may be repeated. Default: static, adaptive."
        ),
    ] = None,
    prior: str = "photos64",
    victim: str = "convnet",
    match: Annotated[str, typer.Option(help="Pattern of the private images' file names.")] = "*",
    limit: Annotated[int, typer.Option(help="Private images to use, evenly spaced.", min=1)] = 4,
    shape: Shape = None,
    size: FormerSize = None,
    evaluations: Evaluations = 160,
    restarts: Restarts = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of the federation.", min=1)] = 200,
    clients: Annotated[int, typer.Option(help="Clients per round.", min=1)] = 8,
    batch_size: Annotated[int, typer.Option(help="Images per client and round.", min=1)] = 16,
    data_size: Annotated[int, typer.Option(help="Side of the training images.", min=8)] = 32,
    seed: Seed = 0,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    offline: Offline = False,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the results; existing ones of these settings are reused."),
    ] = Path("runs/frontier"),
) -> None:
    """Attack each defence at each strength, train a federation with it, and plot both."""
    plan = [("none", "")] + [cell for row in grid or GRID for cell in cells(row)]
    named = map(chosen_attacker, attacker or ("static", "adaptive"))
    attackers = list(dict.fromkeys(named))
    wanted = shape_of(shape, size)
    learnt = read_image_set(data, size=data_size, channels=wanted[0] or 3, labels=labels)
    classes = len(learnt.classes)
    on = device_of(device, max_memory)
    drawn_as: Any = {
        "classes": classes,
        "seed": VICTIM_SEED,
        "device": on,
        "offline": offline,
    }
    model, image_shape = chosen_victim(victim, shape=wanted, **drawn_as)
    channels = image_shape[0]
    if channels != learnt.colours:
        learnt = read_image_set(data, size=data_size, channels=channels, labels=labels)
    pupil = catalog.victim(victim, size=data_size, channels=channels, **drawn_as)
    (built,) = chosen_attacks(
        [attack],
        load=lambda: chosen_prior(prior, shape=image_shape, offline=offline),
        preset=preset,
        without=(),
        steps=None,
        evaluations=evaluations,
        restarts=restarts,
    )
    metrics = chosen_metrics(shape=image_shape, offline=offline)
    sizes: list[tuple[int, int]] = []
    found = read_images(
        images,
        match=match,
        limit=limit,
        size=image_shape[1:],
        channels=channels,
        told=sizes.append,
    )
    private = list(found)
    made = framing(sizes, image_shape[1:])
    if made:
        terminal.note(made)
    known = [class_in(name, labels) for name, _ in private]
    results, keys = Results(out / "frontier.jsonl"), Keys()
    if any(name == "dpsgd" for name, _ in plan) and not accountant_installed():
        terminal.say.print("note: epsilon is omitted, it needs Opacus: pip install 'gifd[dp]'")
    points = []
    for name, strength in dict.fromkeys(plan):
        defenses = (
            () if name == "none" else (catalog.defense(f"{name}:{strength}" if strength else name),)
        )
        federation = Federation(
            model=pupil,
            data=learnt,
            defenses=defenses,
            rounds=rounds,
            clients=clients,
            batch=batch_size,
            seed=seed,
        )
        cell: dict[str, object] = {"defense": name, "strength": strength}
        key = keys.federation(federation)
        if key not in results:
            with terminal.steps(f"federation, {name} {strength}", rounds) as told:
                cost = dataclasses.asdict(federation.run(told))
            results.add(key, {"kind": "federation", **cell, "rounds": rounds} | _finite(cost))
        learned = results[key]
        for each in attackers if defenses else attackers[:1]:
            seeds = [seeds_of(index, seed=seed).trial for index in range(len(private))]
            trials = [
                Trial(
                    names=[file],
                    images=image[None],
                    labels=torch.tensor([label]),
                    client=Client(model=model, defenses=drawn(defenses, own), seed=own),
                    victim={"name": victim, "classes": classes, "seed": VICTIM_SEED},
                    attack=built,
                    metrics=metrics,
                    attacker=each,
                    seed=own,
                )
                for own, (file, image), label in zip(seeds, private, known, strict=True)
            ]
            about = {"kind": "attack", **cell, "attacker": each, "victim": victim}
            rows = answered(
                trials,
                results,
                keys,
                cell=about | {"victim_seed": VICTIM_SEED},
                columns=ROW,
                what=f"{name} {strength}, {each}",
                told=terminal.progress,
            )
            points.append(
                _point(
                    rows,
                    learned,
                    defense=name,
                    strength=strength,
                    attacker=each,
                    attack=built.name,
                    preset=built.preset,
                    evaluations=built.planned_evaluations,
                    victim=victim,
                    seed=seed,
                    rounds=rounds,
                    images=[file for file, _ in private],
                )
            )
    terminal.table(
        "",
        ("defence", "strength", "attacker", "n", "PSNR", "ST-LPIPS", "accuracy"),
        [
            (
                p.defense,
                p.strength,
                p.attacker,
                str(len(p.images)),
                f"{p.mean('psnr')[0]:.2f}",
                f"{p.mean('stlpips')[0]:.3f}",
                f"{p.accuracy:.3f}",
            )
            for p in points
        ],
        console=terminal.say,
    )
    terminal.say.print(f"report: {write_frontier(points, out)}", soft_wrap=True)


def cells(row: str) -> list[tuple[str, str]]:
    """`name:a=1/2,b=3` -> ('name', 'a=1,b=3'), ('name', 'a=2,b=3'); your own defences too.

    Raises:
        InputError: an unknown defence or option.
    """
    name, settings = catalog.split(row, catalog.DEFENSES)
    choices = []
    for setting in settings:
        key, _, values = setting.partition("=")
        choices.append([f"{key}={value}" for value in values.split("/")])
    found = [(name, ",".join(chosen)) for chosen in product(*choices)]
    for known, strength in found:
        catalog.defense(f"{known}:{strength}" if strength else known)
    return found


def _point(rows: Sequence[Row], learned: Row, **setting: object) -> Point:
    """The point from the attacks on all images and the federation.

    Raises:
        InputError: a row of another kind.
    """
    scores = {metric: [row.get(metric) for row in rows] for metric in SCORES}
    cost = {name: learned.get(name) for name in ("accuracy", "cosine", "length", "epsilon")}
    if cost["accuracy"] is None:  # no image was held out
        cost["accuracy"] = math.nan
    try:
        return Point.model_validate(scores | cost | setting)
    except ValidationError as error:
        raise InputError(f"expected results of a frontier, got: {one_line(error)}") from None


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """With null for infinity and NaN, which JSON does not have."""
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }
