"""`gifd frontier`: what each defence hides, and what it costs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog, terminal
from gifd.attacks import Attack
from gifd.campaign.point import Point, add_point, read_points
from gifd.campaign.record import Record
from gifd.campaign.trial import Trial
from gifd.campaign.utility import Utility, utility
from gifd.cli.choices import chosen_attacks, chosen_metrics
from gifd.cli.options import Device, Evaluations, Offline, Restarts, Seed, device_of
from gifd.defenses import known_attacker
from gifd.defenses.dpsgd import accountant_installed
from gifd.errors import InputError
from gifd.images import class_in, read_images
from gifd.report.frontier import write_frontier
from gifd.terminal import one_line_errors
from gifd.training import read_image_set
from gifd.victims import Client

GRID = (
    "noise:std=0.001/0.003/0.01/0.03",
    "clip:norm=0.3/0.1",
    "sparsify:rate=0.5/0.9/0.99",
    "soteria:rate=0.4/0.8",
    "quantize:scheme=int8/ternary/sign",
    "dpsgd:noise=0.003/0.01/0.03",
)


@one_line_errors
def frontier(
    images: Annotated[Path, typer.Argument(help="Private images: a folder or zip.")],
    data: Annotated[Path, typer.Option(help="Labelled images to learn from: a folder or zip.")],
    labels: Annotated[
        str, typer.Option(help="A pattern whose group is the class in a path, of both.")
    ] = "class([0-9]+)",
    grid: Annotated[
        list[str] | None,
        typer.Option(help="As 'noise:std=0.001/0.01/0.1'; may be repeated. Default: six defences."),
    ] = None,
    attack: Annotated[str, typer.Option(help="From 'gifd list'.")] = "gifd",
    preset: str = "strongest",
    attacker: Annotated[
        list[str] | None,
        typer.Option(help="naive, told or estimated; may be repeated. Default: naive, told."),
    ] = None,
    prior: str = "photos64",
    victim: str = "convnet",
    match: Annotated[str, typer.Option(help="Which private images.")] = "*",
    limit: Annotated[int, typer.Option(help="How many, evenly spaced.", min=1)] = 4,
    size: Annotated[int, typer.Option(help="Of the private images.", min=16)] = 64,
    evaluations: Evaluations = 160,
    restarts: Restarts = 1,
    rounds: Annotated[int, typer.Option(help="Of the federation.", min=1)] = 200,
    clients: Annotated[int, typer.Option(help="Of the federation.", min=1)] = 8,
    batch_size: Annotated[int, typer.Option(help="Of its clients.", min=1)] = 16,
    data_size: Annotated[int, typer.Option(help="Side of its images.", min=8)] = 32,
    seed: Seed = 0,
    device: Device = "auto",
    offline: Offline = False,
    out: Annotated[Path, typer.Option(help="Folder; what is there is not computed again.")] = Path(
        "runs/frontier"
    ),
) -> None:
    """Attack each defence at each strength, train a federation with it, and draw both."""
    plan = [("none", "")] + [cell for row in grid or GRID for cell in cells(row)]
    attackers = [known_attacker(name) for name in attacker or ("naive", "told")]
    learnt = read_image_set(data, size=data_size, labels=labels)
    classes = len(learnt.classes)
    on = device_of(device)
    model = catalog.victim(victim, classes=classes, size=size, seed=0, device=on)
    pupil = catalog.victim(victim, classes=classes, size=data_size, seed=0, device=on)
    (built,) = chosen_attacks(
        [attack],
        load=lambda: catalog.prior(prior, size=size, offline=offline),
        preset=preset,
        without=(),
        steps=None,
        evaluations=evaluations,
        restarts=restarts,
    )
    metrics = chosen_metrics(lpips=False, offline=offline)
    private = list(read_images(images, match=match, limit=limit, size=size))
    known = [class_in(name, labels) for name, _ in private]
    path = out / "frontier.jsonl"
    found = read_points(path)
    _check(
        found,
        attack=built.name,
        preset=built.preset,
        evaluations=built.planned_evaluations,
        victim=victim,
        seed=seed,
        rounds=rounds,
        images=[name for name, _ in private],
    )
    done = {(p.defense, p.strength, p.attacker) for p in found}
    if any(name == "dpsgd" for name, _ in plan) and not accountant_installed():
        terminal.say.print("note: epsilon is left out, it needs Opacus: pip install 'gifd[dp]'")
    for name, strength in plan:
        defenses = (
            () if name == "none" else (catalog.defense(f"{name}:{strength}" if strength else name),)
        )
        left = [a for a in attackers if (name, strength, a) not in done]
        if name == "none":
            left = left[:1] if len(left) == len(attackers) else []
        if not left:
            continue
        with terminal.steps(f"federation, {name} {strength}", rounds) as told:
            learned = utility(
                pupil,
                learnt,
                defenses,
                rounds=rounds,
                clients=clients,
                batch=batch_size,
                seed=seed,
                callback=told,
            )
        for each in left:
            client = Client(model=model, defenses=defenses, attacker=each, seed=seed)
            records = []
            for (file, image), label in zip(private, known, strict=True):
                trial = Trial(
                    names=[file],
                    images=image[None],
                    labels=torch.tensor([label]),
                    client=client,
                    victim={"name": victim},
                    attack=built,
                    metrics=metrics,
                    seed=seed,
                )
                with terminal.progress(f"{name} {strength}, {each}: {file}") as callback:
                    records.append(trial.run(callback).record)
            add_point(_point(name, strength, each, built, records, learned, victim, rounds), path)
    points = read_points(path)
    terminal.table(
        "",
        ("defence", "strength", "attacker", "PSNR", "ST-LPIPS", "accuracy"),
        [
            (
                p.defense,
                p.strength,
                p.attacker,
                f"{p.mean('psnr')[0]:.2f}",
                f"{p.mean('stlpips')[0]:.3f}",
                f"{p.accuracy:.3f}",
            )
            for p in points
        ],
        console=terminal.say,
    )
    terminal.say.print(f"report: {write_frontier(points, out)}", soft_wrap=True)


def _check(points: list[Point], **setting: object) -> None:
    """Refuse to add to the points of another setting."""
    for point in points:
        for name, wanted in setting.items():
            if point.setting[name] != wanted:
                raise InputError(
                    f"expected a folder with points of {name} {wanted}, got one of "
                    f"{point.setting[name]}: choose another --out"
                )


def cells(row: str) -> list[tuple[str, str]]:
    """`name:a=1/2,b=3` as ('name', 'a=1,b=3') and ('name', 'a=2,b=3').

    Raises:
        InputError: a defence or a strength that there is not.
    """
    name, _, settings = row.partition(":")
    choices = []
    for setting in filter(None, settings.split(",")):
        key, _, values = setting.partition("=")
        choices.append([f"{key}={value}" for value in values.split("/")])
    found = [(name, ",".join(chosen)) for chosen in product(*choices)]
    for known, strength in found:
        catalog.defense(f"{known}:{strength}" if strength else known)
    return found


def _point(
    name: str,
    strength: str,
    attacker: str,
    attack: Attack,
    records: list[Record],
    learned: Utility,
    victim: str,
    rounds: int,
) -> Point:
    return Point(
        defense=name,
        strength=strength,
        attack=attack.name,
        preset=attack.preset,
        attacker=attacker,
        evaluations=attack.planned_evaluations,
        victim=victim,
        seed=records[0].seed,
        rounds=rounds,
        images=[record.image for record in records],
        psnr=[record.psnr for record in records],
        ssim=[record.ssim for record in records],
        stlpips=[record.stlpips for record in records],
        accuracy=learned.accuracy,
        cosine=learned.cosine,
        length=learned.length,
        epsilon=learned.epsilon,
    )
