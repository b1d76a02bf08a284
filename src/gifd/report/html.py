"""A self-contained HTML page about the trials in a store."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from gifd.campaign.record import Record
from gifd.campaign.store import Store, Stored
from gifd.errors import InputError, one_line
from gifd.report.said import number, said
from gifd.report.strip import decibel, defended_by, draw_strip, group_by_batch, trial_picture

COLOURS = ("#3867d6", "#d6503f", "#1f9e89", "#a05fc4", "#c98a1b", "#5b6472")


def write_report(store: Store, *, title: str = "What the update gave away") -> Path:
    """Write `report.html` and `strip.png` into the store's folder.

    Returns:
        The path of the page, which needs no other file and no network.

    Raises:
        InputError: the store is empty, misses pictures, or cannot be written to.
    """
    trials = list(store)
    if not trials:
        raise InputError(f"expected at least one finished trial in '{store.folder}', got none")
    strip, path = store.folder / "strip.png", store.folder / "report.html"
    try:
        draw_strip(trials, strip)
        page = _ENVIRONMENT.get_template("report.html.j2").render(
            title=title,
            strip=_embed(strip),
            groups=[_Group(group) for group in group_by_batch(trials)],
            first=trials[0].record,
        )
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(
            f"expected to write a report to '{store.folder}', got: {one_line(error)}"
        ) from None
    return path


class _Group:
    """One private batch and its trials, for the template."""

    def __init__(self, trials: Sequence[Stored]) -> None:
        self.first = trials[0].record
        self.image = self.first.image
        self.defended_by = defended_by(self.first)
        self.private = _embed(trials[0].private) if self.first.truth else None
        self.trials = trials
        self.records = [trial.record for trial in trials]
        self.images = list(zip(*(record.images for record in self.records), strict=True))
        self.chart = _chart(self.records)
        self.films = [
            (
                trial.record,
                [
                    (phase, _embed(path), phase.name == trial.record.phase)
                    for phase, path in zip(trial.record.phases, trial.phases, strict=False)
                ],
            )
            for trial in trials
            if len(trial.record.phases) > 1
        ]

    @property
    def best(self) -> dict[str, float]:
        """The best value of each metric in this group, shown in bold."""
        best: dict[str, float] = {}
        for name, pick in (("psnr", max), ("ssim", max), ("mse", min), ("stlpips", min)):
            values = [v for r in self.records if (v := getattr(r, name)) is not None]
            if values:
                best[name] = pick(values)
        return best


def _chart(records: Sequence[Record]) -> dict[str, object]:
    """Least distance so far against evaluations, on a logarithmic axis, as SVG paths.

    Distances of exact and smoothed replays are not comparable, so each has a line of its own.
    """
    lines: list[tuple[str, str, bool, list[tuple[float, float]]]] = []
    for i, record in enumerate(records):
        name, spent = f"{record.attack} ({record.preset})", 0.0
        for smoothing, phases in groupby(record.phases, key=lambda phase: phase.smoothing):
            least, points = math.inf, list[tuple[float, float]]()
            lines.append((name, COLOURS[i % len(COLOURS)], bool(smoothing), points))
            for row in chain.from_iterable(phase.curve for phase in phases):
                values = [value for value in row if value is not None and value > 0]
                spent += len(values)
                least = min([least, *values])
                if math.isfinite(least):
                    points.append((spent, least))
    everything = [point for *_, line in lines for point in line]
    if not everything:
        return {"lines": [], "names": {}, "smoothed": False, "ticks": [], "right": 0}
    right = max(x for x, _ in everything)
    low = math.floor(math.log10(min(y for _, y in everything)) * 2) / 2
    high = math.ceil(math.log10(max(y for _, y in everything)) * 2) / 2
    high = max(high, low + 0.5)

    def place(x: float, y: float) -> tuple[float, float]:
        across = 52 + 570 * x / right
        down = 12 + 176 * (high - math.log10(y)) / (high - low)
        return round(across, 1), round(down, 1)

    def path(line: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join("{},{}".format(*place(x, y)) for x, y in line)

    decades = range(math.ceil(low), math.floor(high) + 1)
    return {
        "lines": [(colour, smoothed, path(line)) for _, colour, smoothed, line in lines if line],
        "names": {name: colour for name, colour, _, line in lines if line},
        "smoothed": any(smoothed for _, _, smoothed, _ in lines),
        "ticks": [(place(0, 10.0**d)[1], f"{10.0**d:g}") for d in decades],
        "right": int(right),
    }


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(trial_picture(path)).decode("ascii")


_ENVIRONMENT = Environment(
    loader=PackageLoader("gifd.report"), autoescape=select_autoescape(default=True)
)
_ENVIRONMENT.filters |= {"decibel": decibel, "number": number, "said": said}
