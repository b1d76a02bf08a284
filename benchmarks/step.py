"""What an evaluation costs, in processor time; and, against another checkout, the ratio.

    python benchmarks/step.py gifd --victim convnet --steps 30
    python benchmarks/step.py gifd --victim convnet --steps 30 --against ../before

Processor time of one thread hardly depends on what else the machine does. The two checkouts are
measured in turn, each in a process of its own, and the least of each counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import gifd
from gifd import attacks, catalog
from gifd.errors import InputError
from gifd.terminal import one_line_errors


def milliseconds(name: str, victim: str, preset: str, steps: int, restarts: int) -> float:
    """An evaluation of this attack on a sample of `faces64`, all its phases together."""
    prior = gifd.faces64()
    model = catalog.victim(victim, classes=10, size=64, seed=0)
    image = prior.sample(1, seed=5).clamp(0, 1)
    seen: Any = gifd.Client(model=model).step(image, torch.tensor([3]))[0]
    if hasattr(gifd, "observe"):  # a checkout may be older than that
        seen = gifd.observe(seen)
    given = (prior,) if name in ("gifd", "gias", "ggl") else ()
    attack = getattr(attacks, name)(*given, preset=preset, restarts=restarts)
    attack.with_steps(len(attack.phases) + 5)(seen)
    attack = attack.with_steps(steps)
    spent = []
    for _ in range(2):
        began = time.process_time()
        found = attack(seen, seed=1)
        spent.append((time.process_time() - began) / found.evaluations)
    return float(1000 * min(spent))


@one_line_errors
def main(
    name: Annotated[str, typer.Argument(help="gifd, gias, ggl, ig, dlg, fedleak, ...")],
    victim: str = "convnet",
    preset: str = "paper",
    steps: Annotated[int, typer.Option(help="Of each restart, all phases together.", min=1)] = 30,
    restarts: Annotated[int, typer.Option(min=1)] = 4,
    against: Annotated[Path | None, typer.Option(help="Another checkout of gifd.")] = None,
    times: Annotated[int, typer.Option(help="Each checkout is measured so often.", min=1)] = 3,
) -> None:
    """Print milliseconds an evaluation, and how much less than AGAINST it is."""
    torch.set_num_threads(1)
    if against is None:
        typer.echo(json.dumps(milliseconds(name, victim, preset, steps, restarts)))
        return
    if not (against / "src" / "gifd").is_dir():
        raise InputError(f"expected a checkout of gifd with its src/gifd, got '{against}'")
    own = Path(gifd.__file__).resolve().parents[2]
    found: dict[Path, list[float]] = {own: [], against.resolve(): []}
    asked = [name, "--victim", victim, "--preset", preset, "--steps", steps, "--restarts", restarts]
    for _ in range(times):
        for checkout, measured in found.items():
            done = subprocess.run(
                [sys.executable, __file__, *map(str, asked)],
                env={**os.environ, "PYTHONPATH": str(checkout / "src")},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise InputError(f"expected '{checkout}' to run, got: {done.stderr[-300:]}")
            measured.append(float(done.stdout))
    here, there = (min(measured) for measured in found.values())
    typer.echo(f"| {name} | {preset} | {victim} | {there:.2f} | {here:.2f} | {there / here:.2f} |")


if __name__ == "__main__":
    typer.run(main)
