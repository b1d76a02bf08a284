"""The picture of parts: what each part of an update gives away, alone and left out."""

from __future__ import annotations

import base64
from collections import Counter
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from gifd.campaign.part import Leak, Parts

ALONE, WITHOUT = "#3867d6", "#d6503f"


def write_layers(found: Parts, folder: Path) -> Path:
    """Write `layers.png`, `layers.json` and a self-contained `layers.html`.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = _draw(found)
    (folder / "layers.png").write_bytes(picture)
    (folder / "layers.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
    page = _ENVIRONMENT.get_template("layers.html.j2").render(
        picture="data:image/png;base64," + base64.b64encode(picture).decode("ascii"),
        whole=cells(found.whole),
        rows=[
            (part.name, f"{part.share:.1%}", cells(part.alone), cells(part.without))
            for part in found.parts
        ],
        setting=found.setting,
    )
    path = folder / "layers.html"
    path.write_text(page, encoding="utf-8")
    return path


def cells(leak: Leak) -> dict[str, str]:
    """A leak in words: `psnr`, `by` and `labels`."""
    by = Counter(name for name in leak.by if name is not None)
    right = [each for each in leak.labels if each is not None]
    mean = leak.mean
    if mean is None:
        return {"psnr": "refused", "by": "", "labels": ""}
    return {
        "psnr": f"{mean[0]:.1f} ± {mean[1]:.1f} dB" if mean[1] else f"{mean[0]:.1f} dB",
        "by": ", ".join(name for name, _ in by.most_common()),
        "labels": f"{sum(right)} of {len(right)}",
    }


def _draw(found: Parts) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, max(3.2, 1.6 + 0.55 * len(found.parts))), layout="constrained")
    panel = figure.subplots()
    for offset, colour, label, leaks in (
        (-0.2, ALONE, "alone", [part.alone for part in found.parts]),
        (0.2, WITHOUT, "without", [part.without for part in found.parts]),
    ):
        for place, leak in enumerate(leaks):
            mean = leak.mean
            if mean is None:
                panel.text(0.5, place + offset, "refused", va="center", fontsize=8, color=colour)
                continue
            panel.barh(
                place + offset,
                mean[0],
                height=0.36,
                color=colour,
                xerr=mean[1] or None,
                capsize=2,
                label=label,
            )
    if (whole := found.whole.mean) is not None:
        panel.axvline(whole[0], color="k", linestyle="--", linewidth=1, label="everything")
    panel.axvline(found.grey, color="k", linestyle=":", linewidth=1, label="a grey picture")
    leaks = [found.whole, *(leak for part in found.parts for leak in (part.alone, part.without))]
    panel.set_xlim(0, 1.15 * max(found.grey, *(sum(leak.mean or (0, 0)) for leak in leaks)))
    panel.set_yticks(range(len(found.parts)), [part.name for part in found.parts])
    panel.invert_yaxis()
    panel.set_xlabel("PSNR of the best reconstruction, dB")
    handles, labels = panel.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=4, fontsize=9)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


_ENVIRONMENT = Environment(
    loader=PackageLoader("gifd.report"), autoescape=select_autoescape(default=True)
)
