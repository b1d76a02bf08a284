"""Compare attacks at equal victim-gradient evaluations on a folder or zip of images.

    python benchmarks/attacks.py faces.zip --match 'face_*' --limit 8 --evaluations 400

Every attack meets the same images, the same victim and the same seed, and spends the same
number of victim gradients. Results are appended to a JSON Lines file as they come, so that
an interrupted run goes on where it stopped, and two shards (`--shard 0/2`, `--shard 1/2`)
may run beside each other. The table at the end gives means with 95 % t-intervals and the
paired differences over images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.campaign.trial import Trial
from gifd.defenses import known_attacker
from gifd.errors import InputError
from gifd.images import class_in, read_images
from gifd.interval import written
from gifd.metrics import MSE, PSNR, SSIM, STLPIPS
from gifd.victims import Client

METRICS = ("psnr", "ssim", "stlpips", "mse", "seconds")
Row = dict[str, object]


def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Which file names.")] = "*",
    limit: Annotated[int, typer.Option(help="How many clients, their images evenly spaced.")] = 8,
    attacks: Annotated[
        str,
        typer.Option(
            help="name:preset, comma-separated; name:preset-extension drops one, name:preset+map "
            "maps labels."
        ),
    ] = "ig:paper,gifd:paper,ig:strongest,gifd:strongest",
    evaluations: Annotated[int, typer.Option(help="Victim gradients of each attack.")] = 400,
    restarts: Annotated[int, typer.Option(help="Restarts of every attack; 0: its own number.")] = 1,
    prior: str = "faces64",
    victim: str = "resnet18",
    classes: int = 10,
    size: int = 64,
    victim_seed: int = 0,
    seed: int = 0,
    device: str = "cpu",
    threads: Annotated[int, typer.Option(help="PyTorch's threads; 0: its own choice.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images a client; LIMIT counts clients.")] = 1,
    labels: Annotated[
        str | None, typer.Option(help="Pattern of the class in a name; by default they are dealt.")
    ] = None,
    grant_labels: Annotated[bool, typer.Option("--grant-labels")] = False,
    defense: Annotated[
        list[str] | None, typer.Option(help="As 'noise:std=0.1'; may be repeated, in order.")
    ] = None,
    attacker: str = "told",
    shard: Annotated[str, typer.Option(help="k/n: only every n-th client, from the k-th.")] = "0/1",
    out: Annotated[Path, typer.Option(help="JSON Lines file.")] = Path("runs/benchmark.jsonl"),
) -> None:
    """Run what is missing in OUT, then print the table of all that is there."""
    if threads:
        torch.set_num_threads(threads)
    model = catalog.victim(victim, classes=classes, size=size, seed=victim_seed, device=device)
    generator = catalog.prior(prior)
    built = {}
    for spec in attacks.split(","):
        name, _, rest = spec.partition(":")
        rest, _, mapping = rest.partition("+")
        preset, *without = rest.split("-")
        if mapping not in ("", "map"):
            raise InputError(f"expected '+map' or nothing, got '+{mapping}' in '{spec}'")
        how = "on" if mapping else "off"
        attack = catalog.attack(
            name,
            prior=generator,
            preset=preset,
            without=without,
            restarts=restarts or None,
            label_mapping=catalog.label_mapping(how, generator, classes=classes),
        )
        built[spec] = attack.with_evaluations(evaluations)
    which, of = (int(part) for part in shard.split("/"))
    out.parent.mkdir(parents=True, exist_ok=True)
    client = Client(
        model=model,
        grant_labels=grant_labels,
        defenses=tuple(catalog.defense(text) for text in defense or ()),
        attacker=known_attacker(attacker),
        seed=seed,
    )
    pictures = list(read_images(source, match=match, limit=limit * batch_size, size=size))
    batches = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    done = {(row["image"], row["spec"], row["seed"]) for row in _rows(out)}
    for index, batch in enumerate(batches):
        if index % of != which:
            continue
        names = [name for name, _ in batch]
        dealt = [(index * batch_size + i) % classes for i in range(len(batch))]
        known = dealt if labels is None else [class_in(name, labels) for name in names]
        for spec, attack in built.items():
            trial = Trial(
                names=names,
                images=torch.stack([image for _, image in batch]),
                labels=torch.tensor(known),
                client=client,
                victim={"name": victim, "classes": classes, "seed": victim_seed},
                attack=attack,
                metrics=(PSNR(), SSIM(), MSE(), STLPIPS()),
                seed=seed,
            )
            if (trial.name, spec, seed) in done:
                continue
            record = trial.run().record
            row = {"spec": spec, "planned": evaluations}
            row |= record.model_dump(include={"image", "seed", "distance", "phase", "evaluations"})
            row |= {metric: getattr(record, metric) for metric in METRICS}
            row["phases"] = [[p.name, p.distance, p.psnr] for p in record.phases]
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            typer.echo(
                f"{trial.name} {spec}: {record.psnr:.2f} dB, distance {record.distance:.4f}, "
                f"{record.seconds:.0f} s",
                err=True,
            )
    typer.echo(table(list(_rows(out)), list(built)))


def table(rows: Sequence[Row], specs: Sequence[str]) -> str:
    """Means with 95 % t-intervals over images, and paired differences, as Markdown."""
    lines = [
        f"| attack | images | {' | '.join(METRICS)} | evaluations |",
        "|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    values = {
        spec: {(row["image"], row["seed"]): row for row in rows if row["spec"] == spec}
        for spec in specs
    }
    for spec, by_image in values.items():
        if by_image:
            cells = [written([_number(row[m]) for row in by_image.values()]) for m in METRICS]
            spent = {row["evaluations"] for row in by_image.values()}
            lines.append(
                f"| {spec} | {len(by_image)} | {' | '.join(cells)} | "
                f"{', '.join(str(n) for n in sorted(map(str, spent)))} |"
            )
    lines += ["", "| paired difference | images | psnr | ssim | stlpips | mse |", "|---" * 6 + "|"]
    for left, right in _pairs(specs):
        both = [key for key in values[left] if key in values[right]]
        if len(both) > 1:
            cells = [
                written([_number(values[left][k][m]) - _number(values[right][k][m]) for k in both])
                for m in ("psnr", "ssim", "stlpips", "mse")
            ]
            lines.append(f"| {left} - {right} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pairs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Every attack against the ones before it."""
    return [(b, a) for i, b in enumerate(specs) for a in specs[:i]]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise InputError(f"expected numbers to average, got {value!r}")
    return float(value)


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    typer.run(main)
