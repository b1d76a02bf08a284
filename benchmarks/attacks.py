"""Compare attacks at equal victim-gradient evaluations on a folder or zip of images.

    python benchmarks/attacks.py faces.zip --match 'face_*' --limit 8 --evaluations 400

Every client has its own victim, attack's start and defence's noise (`seeds_of`), the same for
every attack, and every attack spends the same number of victim gradients. Results are appended to
a JSON Lines file, each under a key of all settings that determine it, so that an interrupted run
can be continued, and shards (`--shard 0/2`, `--shard 1/2`) can run in parallel. The tables at the
end show this call's settings only: means over the n clients with 95 % t-intervals, and paired
differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.attacker.observe import known_attacker
from gifd.attacks.presets import PRESETS
from gifd.campaign.sweep import Keys, Results, Row, covered, drawn, finished, number, seeds_of
from gifd.campaign.trial import Trial
from gifd.cli.choices import chosen_public
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.images import class_in, read_images
from gifd.interval import written
from gifd.metrics import MSE, PSNR, SSIM, STLPIPS
from gifd.report.strip import decibel
from gifd.terminal import one_line_errors

METRICS = ("psnr", "ssim", "stlpips", "mse", "seconds")
Found = Mapping[str, Mapping[int, Row]]
"""Attack -> number of the client -> row."""


@one_line_errors
def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    limit: Annotated[int, typer.Option(help="Number of clients; their images evenly spaced.")] = 8,
    attacks: Annotated[
        str,
        typer.Option(
            help="name:preset, comma-separated; name:preset-extension switches one off, "
            "name:preset+map maps labels."
        ),
    ] = "ig:paper,gifd:paper,ig:strongest,gifd:strongest",
    evaluations: Annotated[int, typer.Option(help="Victim gradients per attack.")] = 400,
    restarts: Annotated[int, typer.Option(help="Restarts per attack; 0: the preset's.")] = 1,
    prior: str = "faces64",
    victim: str = "resnet18",
    classes: int = 10,
    size: int = 64,
    victim_seed: Annotated[
        int, typer.Option(help="Seed of the victims' weights, spread over the clients.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of starts and noise, likewise.", min=0)] = 0,
    device: str = "cpu",
    threads: Annotated[int, typer.Option(help="PyTorch's threads; 0: its default.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per client.")] = 1,
    labels: Annotated[
        str | None,
        typer.Option(help="Regular expression of the class in a file name. Default: 0, 1, 2, ..."),
    ] = None,
    grant_labels: Annotated[bool, typer.Option("--grant-labels")] = False,
    defense: Annotated[
        list[str] | None, typer.Option(help="E.g. 'noise:std=0.1'; may be repeated, in order.")
    ] = None,
    attacker: str = "adaptive",
    public: Annotated[
        Path | None, typer.Option(help="Folder or zip of images that attacks may learn from.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="E.g. 'fedavg:lr=0.01,steps=4'.")] = "fedsgd",
    shard: Annotated[str, typer.Option(help="k/n: only every n-th client, from the k-th.")] = "0/1",
    out: Annotated[Path, typer.Option(help="JSON Lines file.")] = Path("runs/benchmark.jsonl"),
) -> None:
    """Compute what OUT does not contain, then print the tables."""
    if threads:
        torch.set_num_threads(threads)
    generator = catalog.prior(prior)
    specs = attacks.split(",")
    own = chosen_public(public, [spec.partition(":")[0] for spec in specs], shape=(3, size, size))
    built = {}
    for spec in specs:
        name, _, rest = spec.partition(":")
        rest, _, mapping = rest.partition("+")
        preset = next((p for p in sorted(PRESETS) if rest == p or rest.startswith(f"{p}-")), rest)
        without = rest.removeprefix(preset).split("-")[1:]
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
            public=own,
        )
        built[spec] = attack.with_evaluations(evaluations)
    which, of = _shard(shard)
    results, keys = Results(out), Keys()
    chosen = tuple(catalog.defense(text) for text in defense or ())
    metrics = (PSNR(), SSIM(), MSE(), STLPIPS())
    pictures = list(read_images(source, match=match, limit=limit * batch_size, size=size))
    batches = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    plan: dict[str, dict[int, str]] = {spec: {} for spec in built}
    victims: set[str] = set()
    for index, batch in enumerate(batches):
        seeds = seeds_of(index, seed=seed, victim_seed=victim_seed)
        model = catalog.victim(victim, classes=classes, size=size, seed=seeds.victim, device=device)
        victims.add(keys.of(model))
        client = Client(
            model=model,
            protocol=catalog.protocol(protocol, images=batch_size),
            grant_labels=grant_labels,
            defenses=drawn(chosen, seeds.trial),
            seed=seeds.trial,
        )
        names = [name for name, _ in batch]
        dealt = [(index * batch_size + i) % classes for i in range(len(batch))]
        known = dealt if labels is None else [class_in(name, labels) for name in names]
        for spec, attack in built.items():
            trial = Trial(
                names=names,
                images=torch.stack([image for _, image in batch]),
                labels=torch.tensor(known),
                client=client,
                victim={"name": victim, "classes": classes, "seed": seeds.victim},
                attack=attack,
                metrics=metrics,
                attacker=known_attacker(attacker),
                seed=seeds.trial,
            )
            key = plan[spec][index] = keys.trial(trial)
            if key in results or index % of != which:
                continue
            record = finished(trial)
            row: dict[str, object] = {"spec": spec, "planned": evaluations}
            row |= record.model_dump(include={"image", "seed", "distance", "phase", "evaluations"})
            row |= {"victim": victim, "victim_seed": seeds.victim}
            row |= {metric: getattr(record, metric) for metric in METRICS}
            row["phases"] = [[p.name, p.distance, p.psnr] for p in record.phases]
            results.add(key, row)
            typer.echo(
                f"{trial.name} {spec}: PSNR {decibel(record.psnr)}, "
                f"distance {record.distance:.4f}, {record.seconds:.0f} s",
                err=True,
            )
    results = Results(out)  # with those of other shards
    found = {
        spec: {index: results[key] for index, key in of_spec.items() if key in results}
        for spec, of_spec in plan.items()
    }
    typer.echo(f"{covered(len(victims))}\n\n{table(found)}")


def _shard(text: str) -> tuple[int, int]:
    """'k/n' as two numbers, 0 <= k < n."""
    which, _, of = text.partition("/")
    if not (which.isdigit() and of.isdigit() and int(which) < int(of)):
        raise InputError(f"expected --shard as k/n with 0 <= k < n, e.g. 0/2, got '{text}'")
    return int(which), int(of)


def table(found: Found) -> str:
    """Means with 95 % t-intervals over n clients, and paired differences, as Markdown."""
    lines = [
        f"| attack | n | {' | '.join(METRICS)} | evaluations |",
        "|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    for spec, rows in found.items():
        if rows:
            cells = [written([number(row, m) for row in rows.values()]) for m in METRICS]
            spent = sorted({number(row, "evaluations") for row in rows.values()})
            lines.append(
                f"| {spec} | {len(rows)} | {' | '.join(cells)} | "
                f"{', '.join(f'{n:.0f}' for n in spent)} |"
            )
    lines += ["", "| paired difference | n | psnr | ssim | stlpips | mse |", "|---" * 6 + "|"]
    for left, right in _pairs(list(found)):
        one, other = found[left], found[right]
        both = [index for index in one if index in other]
        if len(both) > 1:
            cells = [
                written([number(one[i], m) - number(other[i], m) for i in both])
                for m in ("psnr", "ssim", "stlpips", "mse")
            ]
            lines.append(f"| {left} - {right} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _pairs(specs: Sequence[str]) -> list[tuple[str, str]]:
    """Every attack with each of those before it."""
    return [(b, a) for i, b in enumerate(specs) for a in specs[:i]]


if __name__ == "__main__":
    typer.run(main)
