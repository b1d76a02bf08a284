"""Compare attacks behind defences, with attackers who ignore, know and guess them.

    python benchmarks/defenses.py faces.zip --match 'face_*' --limit 8 --evaluations 240

The defences and strengths are the four of the GIFD paper. Every attack meets the same images,
victim and seeds at the same number of victim gradients. Results are appended to a JSON Lines
file as they come; the tables give means with 95 % t-intervals over images, and paired
differences: of every attack from itself without a defence, and of the last attack from the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.campaign.trial import Trial
from gifd.defenses import known_attacker
from gifd.images import read_images
from gifd.interval import written
from gifd.metrics import MSE, PSNR, SSIM, STLPIPS
from gifd.victims import Client

METRICS = ("psnr", "ssim", "stlpips")
Key = tuple[str, str, str, str]
Row = dict[str, float]


def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Which file names.")] = "*",
    limit: Annotated[int, typer.Option(help="How many images, evenly spaced.")] = 8,
    defenses: Annotated[str, typer.Option(help="With ; between.")] = (
        "none;noise:std=0.1;clip:norm=4;sparsify:rate=0.9;soteria:rate=0.8"
    ),
    attackers: str = "naive,told,estimated",
    attacks: Annotated[str, typer.Option(help="name:preset, comma-separated.")] = (
        "ig:paper,gifd:paper"
    ),
    evaluations: int = 240,
    prior: str = "faces64",
    victim: str = "resnet18",
    classes: int = 10,
    size: int = 64,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="PyTorch's threads; 0: its own choice.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON Lines file.")] = Path("runs/defenses.jsonl"),
) -> None:
    """Run what is missing in OUT, then print the tables of all that is there."""
    if threads:
        torch.set_num_threads(threads)
    model = catalog.victim(victim, classes=classes, size=size, seed=0)
    generator = catalog.prior(prior)
    built = {}
    for spec in attacks.split(","):
        name, _, preset = spec.partition(":")
        attack = catalog.attack(name, prior=generator, preset=preset, restarts=1)
        built[spec] = attack.with_evaluations(evaluations)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = _rows(out)
    plan = [(d, a) for d in defenses.split(";") for a in attackers.split(",")]
    plan = [(d, a) for d, a in plan if d != "none" or a == "naive"]
    for index, (name, image) in enumerate(read_images(source, match=match, limit=limit, size=size)):
        for defense, attacker in plan:
            client = Client(
                model=model,
                defenses=() if defense == "none" else (catalog.defense(defense),),
                attacker=known_attacker(attacker),
                seed=seed,
            )
            for spec, attack in built.items():
                if (defense, attacker, spec, name) in rows:
                    continue
                trial = Trial(
                    names=[name],
                    images=image[None],
                    labels=torch.tensor([index % classes]),
                    client=client,
                    victim={"name": victim},
                    attack=attack,
                    metrics=(PSNR(), SSIM(), MSE(), STLPIPS()),
                    seed=seed,
                )
                record = trial.run().record
                row = {
                    "defense": defense,
                    "attacker": attacker,
                    "spec": spec,
                    "image": name,
                    "believed": record.ledger["believed"],
                    **{metric: getattr(record, metric) for metric in METRICS},
                }
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                typer.echo(f"{name} {defense} {attacker} {spec}: {record.psnr:.2f} dB", err=True)
    _print(_rows(out), plan, list(built))


def _print(rows: dict[Key, Row], plan: list[tuple[str, str]], specs: list[str]) -> None:
    """A row a defence, attacker and attack, and the paired differences."""
    names = list(dict.fromkeys(key[3] for key in rows))

    def found(defense: str, attacker: str, spec: str) -> dict[str, Row]:
        keys = {name: (defense, attacker, spec, name) for name in names}
        return {name: rows[key] for name, key in keys.items() if key in rows}

    def less(one: dict[str, Row], other: dict[str, Row]) -> list[str]:
        both = [name for name in names if name in one and name in other]
        return [written([one[n][m] - other[n][m] for n in both]) if both else "" for m in METRICS]

    header = (
        "defence",
        "attacker",
        "attack",
        "images",
        *METRICS,
        *(f"{m}, change" for m in METRICS),
    )
    typer.echo(f"| {' | '.join(header)} |\n" + "|---" * len(header) + "|")
    first, *_, last = specs
    for defense, attacker in plan:
        for spec in specs:
            own, bare = found(defense, attacker, spec), found("none", "naive", spec)
            if own:
                means = [written([row[metric] for row in own.values()]) for metric in METRICS]
                changes = [""] * len(METRICS) if defense == "none" else less(own, bare)
                cells = (defense, attacker, spec, str(len(own)), *means, *changes)
                typer.echo(f"| {' | '.join(cells)} |")
    if first == last:
        return
    typer.echo(f"\n| {last} - {first} | attacker | {' | '.join(METRICS)} |\n" + "|---" * 5 + "|")
    for defense, attacker in plan:
        pairs = less(found(defense, attacker, last), found(defense, attacker, first))
        typer.echo(f"| {defense} | {attacker} | {' | '.join(pairs)} |")


def _rows(path: Path) -> dict[Key, Row]:
    if not path.exists():
        return {}
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(r["defense"], r["attacker"], r["spec"], r["image"]): r for r in found}


if __name__ == "__main__":
    typer.run(main)
