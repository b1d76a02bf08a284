"""The command line: `gifd demo | attack | labels | frontier | list | prior`."""

from __future__ import annotations

import typer

from gifd import catalog, terminal
from gifd.cli.attack import attack
from gifd.cli.demo import demo
from gifd.cli.frontier import frontier
from gifd.cli.labels import labels
from gifd.cli.prior import prior_app

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
    terminal.table(
        "Priors", ("name", "what it is"), [(n, e.summary) for n, e in catalog.PRIORS.items()]
    )
    terminal.table(
        "Victims", ("name", "what it is"), [(n, e.summary) for n, e in catalog.VICTIMS.items()]
    )
    terminal.table(
        "Label estimators", ("name",), [(name,) for name in [*catalog.LABELS, "own-images"]]
    )
    terminal.table("Metrics", ("name",), [(name,) for name in catalog.METRICS])
