"""The frontier's picture: leakage against utility, one curve per defence and attacker."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from gifd.campaign.point import Point
from gifd.errors import InputError

COLOURS = ("#3867d6", "#d6503f", "#1f9e89", "#a05fc4", "#c98a1b", "#5b6472", "#b0447a", "#6a8f2f")
STYLES = {"static": ("--", "o"), "adaptive": ("-", "o"), "estimated": (":", "s")}


def write_frontier(points: Sequence[Point], folder: Path) -> Path:
    """Write `frontier.png` and a self-contained `frontier.html`.

    Leakage is the change relative to no defence, paired over the images, which removes the
    differences between images.

    Returns:
        The path of the page.

    Raises:
        InputError: there is no point without a defence.
    """
    bare = next((point for point in points if point.defense == "none"), None)
    if bare is None:
        raise InputError(
            "expected at least one point without a defence to compare with, got "
            f"{[point.defense for point in points]}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    picture = _draw(points, bare)
    (folder / "frontier.png").write_bytes(picture)
    metrics = ("psnr", "stlpips")
    rows = [(p, *(_cell(*p.mean(m)) for m in metrics), *_changes(p, bare)) for p in points]
    page = _ENVIRONMENT.get_template("frontier.html.j2").render(
        picture="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        rows=rows,
        first=bare,
    )
    path = folder / "frontier.html"
    path.write_text(page, encoding="utf-8")
    return path


def _draw(points: Sequence[Point], bare: Point) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    names = sorted({point.defense for point in points} - {"none"})
    attackers = [a for a in STYLES if any(point.attacker == a for point in points)]
    for panel, metric, label in (
        (panels[0], "psnr", f"PSNR, dB, against {_cell(*bare.mean('psnr'))} undefended"),
        (panels[1], "stlpips", f"ST-LPIPS, against {_cell(*bare.mean('stlpips'))} undefended"),
    ):
        for index, name in enumerate(names):
            for attacker in attackers:
                line, marker = STYLES[attacker]
                own = [p for p in points if (p.defense, p.attacker) == (name, attacker)]
                spots = sorted((p.accuracy, *p.change(bare, metric)) for p in own)
                if spots:
                    panel.errorbar(
                        [spot[0] for spot in spots],
                        [spot[1] for spot in spots],
                        yerr=[spot[2] for spot in spots],
                        fmt=marker,
                        linestyle=line,
                        color=COLOURS[index % len(COLOURS)],
                        capsize=2,
                        elinewidth=0.7,
                        markersize=4,
                        label=f"{name}, {attacker}",
                    )
        panel.axhline(0, color="k", linewidth=0.7)
        panel.plot([bare.accuracy], [0], "k*", markersize=12, label="none")
        panel.set_xlabel("test accuracy of the federation")
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
    panels[1].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside right center", fontsize=8)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def _changes(point: Point, bare: Point) -> list[str]:
    if point is bare:
        return ["", ""]
    return [_cell(*point.change(bare, metric)) for metric in ("psnr", "stlpips")]


def _cell(mean: float, half: float) -> str:
    return f"{mean:.2f} ± {half:.2f}" if half else f"{mean:.2f}"


_ENVIRONMENT = Environment(
    loader=PackageLoader("gifd.report"), autoescape=select_autoescape(default=True)
)
