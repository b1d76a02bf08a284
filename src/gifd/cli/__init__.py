"""The command line: `gifd demo | attack | labels | frontier | list | prior`."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Annotated

import typer
from rich.console import Console

from gifd import catalog, terminal
from gifd.cli.attack import attack
from gifd.cli.demo import demo
from gifd.cli.frontier import frontier
from gifd.cli.labels import labels
from gifd.cli.prior import prior_app
from gifd.leakage.counts import AuxiliaryLeastSquares
from gifd.weights import ShippedFile

app = typer.Typer(
    help="What does a federated-learning update give away?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(attack)
app.command()(demo)
app.command()(labels)
app.command()(frontier)
app.add_typer(prior_app, name="prior")


def main() -> None:
    """Run the command line."""
    app()


def _version(asked: bool) -> bool:
    if asked:
        Console().print(f"gifd {installed('gifd')}", highlight=False)
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which this is.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """What does a federated-learning update give away?"""


@app.command("list")
@terminal.one_line_errors
def list_() -> None:
    """What can be named: attacks, defences, priors, victims, label estimators, metrics."""
    terminal.table(
        "Attacks",
        ("name", "what it does", "paper"),
        [(name, entry.summary, entry.reference) for name, entry in catalog.ATTACKS.items()],
    )
    terminal.table(
        "Defences",
        ("name", "options and what it does", "paper"),
        [(name, entry.summary, entry.reference) for name, entry in catalog.DEFENSES.items()],
    )
    priors = [
        (name, prior.summary, "shipped" if isinstance(prior.file, ShippedFile) else "fetched")
        for name, prior in catalog.PRIORS.items()
    ]
    by_hand = [(name, other.summary, "by hand") for name, other in catalog.BY_HAND.items()]
    terminal.table("Priors", ("name", "what it is", "comes"), [*priors, *by_hand])
    terminal.table(
        "Victims", ("name", "what it is"), [(n, e.summary) for n, e in catalog.VICTIMS.items()]
    )
    estimators = {**catalog.LABELS, "own-images": AuxiliaryLeastSquares}
    terminal.table(
        "Label estimators",
        ("name", "how it reads the counts", "paper"),
        [(n, catalog.summary(each), catalog.reference(each)) for n, each in estimators.items()],
    )
    terminal.table(
        "Metrics",
        ("name", "what it is", "better", "paper"),
        [
            (
                name,
                catalog.summary(metric),
                "higher" if metric.higher_is_better else "lower",
                catalog.reference(metric),
            )
            for name, metric in catalog.METRICS.items()
        ],
    )
