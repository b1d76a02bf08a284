"""`gifd demo`: four attacks on a public-domain portrait, and a report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog
from gifd.campaign.demo import demo_face
from gifd.campaign.store import Store
from gifd.campaign.trial import Trial
from gifd.cli.choices import chosen_attacks, chosen_metrics
from gifd.cli.options import Device, Evaluations, Seed, device_of
from gifd.cli.trials import run_trials
from gifd.federation.client import Client
from gifd.terminal import one_line_errors


@one_line_errors
def demo(
    evaluations: Evaluations = 120,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/demo"),
) -> None:
    """Attack a public-domain portrait with 'ig', 'gifd', 'ensemble' and 'peel' and write a report.

    The picture is NASA's portrait of the astronaut Eileen Collins, included in scikit-image.
    """
    model = catalog.victim("resnet18", classes=10, size=64, seed=0, device=device_of(device))
    built = chosen_attacks(
        ["ig", "gifd", "ensemble", "peel"],
        load=lambda: catalog.prior("faces64"),
        preset="strongest",
        without=(),
        steps=None,
        evaluations=evaluations,
        restarts=1,
    )
    metrics = chosen_metrics()
    shutil.rmtree(out / "trials", ignore_errors=True)
    trials = [
        Trial(
            names=["astronaut.png"],
            images=demo_face()[None],
            labels=torch.tensor([3]),
            client=Client(model=model),
            victim={"name": "resnet18", "classes": 10, "seed": 0},
            attack=each,
            metrics=metrics,
            seed=seed,
        )
        for each in built
    ]
    run_trials([lambda: trials], Store(out), json=False)
