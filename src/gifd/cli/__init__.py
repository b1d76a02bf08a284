"""The command line: `gifd demo | attack | invert | labels | layers | federate | frontier | ...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version as installed
from typing import Annotated

import typer
from rich.console import Console

from gifd import catalog, terminal
from gifd.cli.attack import attack
from gifd.cli.demo import demo
from gifd.cli.federate import federate
from gifd.cli.frontier import frontier
from gifd.cli.invert import invert
from gifd.cli.labels import labels
from gifd.cli.layers import layers
from gifd.cli.prior import prior_app
from gifd.leakage.counts import AuxiliaryLeastSquares, LabelEstimator
from gifd.weights import ShippedFile

app = typer.Typer(
    help="What does a federated-learning update give away?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(attack)
app.command()(invert)
app.command()(demo)
app.command()(labels)
app.command()(layers)
app.command()(federate)
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
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """What does a federated-learning update give away?"""


@app.command("list")
@terminal.one_line_errors
def list_() -> None:
    """List every name with its options: attacks, protocols, defences, priors, victims, metrics."""
    terminal.table("Attacks", _HEADS, _rows(catalog.ATTACKS))
    terminal.table("Protocols", _HEADS, _rows(catalog.PROTOCOLS))
    terminal.table("Defences", _HEADS, _rows(catalog.DEFENSES))
    priors = [
        (
            name,
            catalog.summary(prior),
            _options(prior),
            "shipped" if isinstance(catalog.WEIGHTS[name], ShippedFile) else "fetched",
        )
        for name, prior in catalog.PRIORS.items()
    ]
    by_hand = [(name, other.summary, "", "by hand") for name, other in catalog.BY_HAND.items()]
    terminal.table("Priors", ("name", "what it is", "options", "weights"), [*priors, *by_hand])
    terminal.table("Victims", _HEADS, _rows(catalog.VICTIMS))
    estimators: dict[str, type[LabelEstimator]] = {
        **catalog.LABELS,
        "own-images": AuxiliaryLeastSquares,
    }
    terminal.table("Label estimators", _HEADS, _rows(estimators))
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


_HEADS = ("name", "what it is", "options", "paper")
_GIVEN = ("preset", "restarts", "classes", "size", "channels", "images")
"""Parameters with an option of their own on the command line."""


def _rows(table: Mapping[str, Callable[..., object]]) -> list[tuple[str, ...]]:
    return [
        (name, catalog.summary(thing), _options(thing), catalog.reference(thing))
        for name, thing in table.items()
    ]


def _options(thing: Callable[..., object]) -> str:
    return ", ".join(catalog.options(thing, besides=_GIVEN))
