"""Compare attacks on defended updates, by static, adaptive and estimating attackers.

    python benchmarks/defenses.py faces.zip --match 'face_*' --limit 8 --evaluations 240

The defences and strengths are the four of the GIFD paper. Every image has its own victim, attack's
start and defence's noise (`seeds_of`), the same for every attack, defence and attacker, and all
spend the same number of victim gradients. Results are appended to a JSON Lines file, each under a
key of all settings that determine it. The tables show this call's settings only: means over the n
images with 95 % t-intervals, and paired differences, of every attack to itself without a defence,
and of the last attack to the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.attacker.observe import known_attacker
from gifd.campaign.sweep import Keys, Results, Row, covered, drawn, finished, number, seeds_of
from gifd.campaign.trial import Trial
from gifd.federation.client import Client
from gifd.images import read_images
from gifd.interval import written
from gifd.metrics import MSE, PSNR, SSIM, STLPIPS
from gifd.report.strip import decibel
from gifd.terminal import one_line_errors

METRICS = ("psnr", "ssim", "stlpips")
Cell = tuple[str, str, str]
"""A defence, an attacker and an attack."""


@one_line_errors
def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    limit: Annotated[int, typer.Option(help="Images to use, evenly spaced.")] = 8,
    defenses: Annotated[str, typer.Option(help="Separated by semicolons.")] = (
        "none;noise:std=0.1;clip:norm=4;sparsify:rate=0.9,per_layer=true;soteria:rate=0.8"
    ),
    attackers: str = "static,adaptive,estimated",
    attacks: Annotated[str, typer.Option(help="name:preset, comma-separated.")] = (
        "ig:paper,gifd:paper"
    ),
    evaluations: int = 240,
    prior: str = "faces64",
    victim: str = "resnet18",
    classes: int = 10,
    size: int = 64,
    victim_seed: Annotated[
        int, typer.Option(help="Seed of the victims' weights, spread over the images.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of starts and noise, likewise.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="PyTorch's threads; 0: its default.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON Lines file.")] = Path("runs/defenses.jsonl"),
) -> None:
    """Compute what OUT does not contain, then print the tables."""
    if threads:
        torch.set_num_threads(threads)
    generator = catalog.prior(prior)
    built = {}
    for spec in attacks.split(","):
        name, _, preset = spec.partition(":")
        attack = catalog.attack(name, prior=generator, preset=preset, restarts=1)
        built[spec] = attack.with_evaluations(evaluations)
    results, keys = Results(out), Keys()
    metrics = (PSNR(), SSIM(), MSE(), STLPIPS())
    plan = [(d, a) for d in defenses.split(";") for a in attackers.split(",")]
    plan = [(d, a) for d, a in plan if d != "none" or a == "static"]
    found: dict[Cell, dict[int, Row]] = {}
    victims: set[str] = set()
    for index, (name, image) in enumerate(read_images(source, match=match, limit=limit, size=size)):
        seeds = seeds_of(index, seed=seed, victim_seed=victim_seed)
        model = catalog.victim(victim, classes=classes, size=size, seed=seeds.victim)
        victims.add(keys.of(model))
        for defense, attacker in plan:
            own = () if defense == "none" else (catalog.defense(defense),)
            client = Client(
                model=model,
                defenses=drawn(own, seeds.trial),
                seed=seeds.trial,
            )
            for spec, attack in built.items():
                trial = Trial(
                    names=[name],
                    images=image[None],
                    labels=torch.tensor([index % classes]),
                    client=client,
                    victim={"name": victim, "classes": classes, "seed": seeds.victim},
                    attack=attack,
                    metrics=metrics,
                    attacker=known_attacker(attacker),
                    seed=seeds.trial,
                )
                key = keys.trial(trial)
                if key not in results:
                    record = finished(trial)
                    row = {
                        "defense": defense,
                        "attacker": attacker,
                        "spec": spec,
                        "image": name,
                        "victim": victim,
                        "victim_seed": seeds.victim,
                        "seed": record.seed,
                        "believed": record.ledger["believed"],
                        **{metric: getattr(record, metric) for metric in METRICS},
                    }
                    results.add(key, row)
                    told = f"{name} {defense} {attacker} {spec}: PSNR {decibel(record.psnr)}"
                    typer.echo(told, err=True)
                found.setdefault((defense, attacker, spec), {})[index] = results[key]
    typer.echo(f"{covered(len(victims))}\n")
    _print(found, plan, list(built))


def _print(
    found: Mapping[Cell, Mapping[int, Row]], plan: list[tuple[str, str]], specs: list[str]
) -> None:
    """A row per defence, attacker and attack, and the paired differences."""

    def less(one: Cell, other: Cell) -> list[str]:
        pairs = [(row, found[other][index]) for index, row in found[one].items()]
        return [written([number(a, m) - number(b, m) for a, b in pairs]) for m in METRICS]

    header = ("defence", "attacker", "attack", "n", *METRICS, *(f"{m}, change" for m in METRICS))
    typer.echo(f"| {' | '.join(header)} |\n" + "|---" * len(header) + "|")
    first, last = specs[0], specs[-1]
    for defense, attacker in plan:
        for spec in specs:
            own, bare = (defense, attacker, spec), ("none", "static", spec)
            rows = found[own].values()
            means = [written([number(row, metric) for row in rows]) for metric in METRICS]
            compared = defense != "none" and bare in found
            changes = less(own, bare) if compared else [""] * len(METRICS)
            typer.echo(f"| {' | '.join((*own, str(len(rows)), *means, *changes))} |")
    if first == last:
        return
    typer.echo(
        f"\n| {last} - {first} | attacker | n | {' | '.join(METRICS)} |\n" + "|---" * 6 + "|"
    )
    for defense, attacker in plan:
        one, other = (defense, attacker, last), (defense, attacker, first)
        cells = (defense, attacker, str(len(found[one])), *less(one, other))
        typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
