"""`gifd attack` and `gifd demo`: from names to trials, and the trials run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog, terminal
from gifd.attacks import Attack, LabelMapping
from gifd.campaign.demo import demo_face
from gifd.campaign.record import Record
from gifd.campaign.store import Store
from gifd.campaign.trial import Trial
from gifd.cli.options import Device, Offline, device_of
from gifd.errors import GifdError
from gifd.images import read_image
from gifd.metrics import Metric
from gifd.priors import Generator
from gifd.report import write_report
from gifd.terminal import one_line_errors
from gifd.training import REMAPPER_STEPS

Seed = Annotated[int, typer.Option(help="Seed of the attack's randomness.", min=0)]
Steps = Annotated[
    int | None, typer.Option(help="Steps of each restart, all phases together.", min=1)
]
Evaluations = Annotated[
    int | None,
    typer.Option(help="In place of steps: victim gradients, all restarts together.", min=1),
]
Restarts = Annotated[int | None, typer.Option(help="Searches beside each other.", min=1)]


@one_line_errors
def attack(
    images: Annotated[list[Path], typer.Argument(help="Private images; each is one client.")],
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="May be repeated. Default: gifd.")
    ] = None,
    prior: Annotated[
        str, typer.Option(help="From 'gifd prior list', or a checkpoint file.")
    ] = "faces64",
    prior_option: Annotated[
        list[str] | None,
        typer.Option(help="key=value of a checkpoint's architecture; may be repeated."),
    ] = None,
    victim: Annotated[
        str, typer.Option(help="From 'gifd list', or your own 'package.module:factory'.")
    ] = "resnet18",
    preset: Annotated[
        str, typer.Option(help="'strongest' (ours added) or 'paper' (exactly the paper).")
    ] = "strongest",
    without: Annotated[
        list[str] | None,
        typer.Option(help="An extension of 'strongest' to switch off; may be repeated."),
    ] = None,
    steps: Steps = None,
    evaluations: Evaluations = None,
    restarts: Restarts = None,
    label: Annotated[int, typer.Option(help="The images' class, known to the client.")] = 0,
    classes: Annotated[int, typer.Option(help="Classes of a built-in victim.")] = 10,
    label_mapping: Annotated[
        str,
        typer.Option(
            help="For a conditional prior of other classes: auto, on, off, or a remapper's file."
        ),
    ] = "auto",
    size: Annotated[int, typer.Option(help="Images are cropped to size x size.", min=16)] = 64,
    victim_seed: Annotated[int, typer.Option(help="Seed of the victim's weights.")] = 0,
    seed: Seed = 0,
    device: Device = "auto",
    lpips: Annotated[bool, typer.Option("--lpips", help="Also LPIPS (extra 'lpips').")] = False,
    offline: Offline = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: runs/<date and time>.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a trial on stdout.")
    ] = False,
) -> None:
    """Compute each image's update, attack it, and say what came back."""
    model = catalog.victim(
        victim, classes=classes, size=size, seed=victim_seed, device=device_of(device)
    )
    built = _attacks(
        attacks or ["gifd"],
        load=lambda: catalog.prior(prior, size=size, options=prior_option or (), offline=offline),
        preset=preset,
        without=without or (),
        steps=steps,
        evaluations=evaluations,
        restarts=restarts,
        mapped=lambda prior: _mapping(label_mapping, prior, classes),
    )
    metrics = _metrics(lpips=lpips, offline=offline)
    store = Store(out or Path("runs") / datetime.now().strftime("%Y-%m-%d-%H%M%S"))
    origin = {"name": victim, "classes": classes, "seed": victim_seed}

    def trials() -> Iterator[Callable[[], Iterable[Trial]]]:
        for path in images:

            def prepare(path: Path = path) -> Iterator[Trial]:
                image = read_image(path, size=size)
                for each in built:
                    yield Trial(
                        name=path.name,
                        image=image,
                        label=label,
                        model=model,
                        victim=origin,
                        attack=each,
                        metrics=metrics,
                        seed=seed,
                    )

            yield prepare

    _run(trials(), store, json=json)


@one_line_errors
def demo(
    evaluations: Evaluations = 160,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/demo"),
) -> None:
    """Attack a public-domain portrait with 'ig' and 'gifd' and write a report about it.

    The picture is NASA's portrait of the astronaut Eileen Collins, which scikit-image ships.
    """
    import shutil

    model = catalog.victim("resnet18", classes=10, size=64, seed=0, device=device_of(device))
    built = _attacks(
        ["ig", "gifd"],
        load=lambda: catalog.prior("faces64"),
        preset="strongest",
        without=(),
        steps=None,
        evaluations=evaluations,
        restarts=1,
    )
    metrics = _metrics(lpips=False, offline=False)
    shutil.rmtree(out / "trials", ignore_errors=True)
    trials = [
        Trial(
            name="astronaut.png",
            image=demo_face(),
            label=3,
            model=model,
            victim={"name": "resnet18", "classes": 10, "seed": 0},
            attack=each,
            metrics=metrics,
            seed=seed,
        )
        for each in built
    ]
    _run([lambda: trials], Store(out), json=False)


# -- running trials ------------------------------------------------------------------------


def _run(prepared: Iterable[Callable[[], Iterable[Trial]]], store: Store, *, json: bool) -> None:
    """Run what can be run; a bad image costs its own trials and no others."""
    records: list[Record] = []
    failed = interrupted = False
    for prepare in prepared:
        try:
            for trial in prepare():
                with terminal.progress(f"{trial.name}: {trial.attack.name}") as callback:
                    outcome = trial.run(callback)
                stored = store.add(outcome)
                records.append(stored.record)
                if json:
                    sys.stdout.write(stored.record.model_dump_json() + "\n")
                    sys.stdout.flush()
                if stored.record.dropped:
                    terminal.say.print(
                        f"note: restarts {stored.record.dropped} became non-finite, dropped"
                    )
                interrupted = stored.record.interrupted
                if interrupted:
                    break
        except GifdError as error:
            terminal.complain(error)
            failed = True
        except KeyboardInterrupt:
            interrupted = True
        if interrupted:
            terminal.say.print("interrupted: what was found so far is kept")
            break
    if records:
        terminal.results(records)
        terminal.say.print(f"report: {write_report(store)}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(2)


# -- from names to values ------------------------------------------------------------------


def _attacks(
    names: Sequence[str],
    *,
    load: Callable[[], Generator],
    preset: str,
    without: Sequence[str],
    steps: int | None,
    evaluations: int | None,
    restarts: int | None,
    mapped: Callable[[Generator], LabelMapping | None] = lambda prior: None,
) -> list[Attack]:
    """The attacks by name; the prior is loaded only if one of them has one."""
    needed = any(name in catalog.ATTACKS and catalog.ATTACKS[name].needs_prior for name in names)
    generator = load() if needed else None
    label_mapping = None if generator is None else mapped(generator)
    return [
        catalog.attack(
            name,
            prior=generator,
            preset=preset,
            without=without,
            steps=steps,
            evaluations=evaluations,
            restarts=restarts,
            label_mapping=label_mapping,
        )
        for name in names
    ]


def _mapping(how: str, prior: Generator, classes: int) -> LabelMapping | None:
    """The label mapping, its remapper trained under a bar where none is cached."""
    note = (
        f"the classes of {prior} are not the victim's: a classifier is trained on its samples, "
        "once (--label-mapping off goes without)"
    )
    with terminal.steps(f"remapper of {prior.name}", REMAPPER_STEPS, note) as callback:
        return catalog.label_mapping(how, prior, classes=classes, callback=callback)


def _metrics(*, lpips: bool, offline: bool) -> list[Metric]:
    """The metrics, tried once: missing weights or extras are told before hours of search."""
    metrics = [
        build(offline=offline) if name == "stlpips" else build()
        for name, build in catalog.METRICS.items()
        if name != "lpips" or lpips
    ]
    blank = torch.zeros(1, 3, 64, 64)
    for metric in metrics:
        metric(blank, blank)
    return metrics
