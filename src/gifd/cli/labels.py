"""`gifd labels`: which classes are in an update, and how often."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from gifd import catalog, terminal
from gifd.attacker.observe import observe
from gifd.captures import read_capture
from gifd.cli.choices import chosen_victim
from gifd.cli.options import Classes, Protocol, Victim, VictimSeed
from gifd.errors import InputError
from gifd.federation.upload import Upload
from gifd.leakage.counts import AuxiliaryLeastSquares, LabelEstimator
from gifd.leakage.one_label import read_label
from gifd.terminal import one_line_errors
from gifd.training import read_image_set


@one_line_errors
def labels(
    update: Annotated[
        Path, typer.Argument(help="The client's update: safetensors, torch.save, or .npz.")
    ],
    batch_size: Annotated[int, typer.Option(help="Number of private images.", min=1)],
    victim: Victim = "resnet18",
    classes: Classes = 10,
    size: Annotated[int, typer.Option(help="Side of the private images.", min=8)] = 64,
    victim_seed: VictimSeed = 0,
    estimator: Annotated[
        str, typer.Option(help=f"One of {', '.join([*catalog.LABELS, 'own-images'])}.")
    ] = "dummy-mean",
    own: Annotated[
        Path | None,
        typer.Option(help="For own-images: the attacker's labelled images, a folder or zip."),
    ] = None,
    own_labels: Annotated[
        str,
        typer.Option(help="Regular expression whose group is the class in their paths."),
    ] = "class([0-9]+)",
    protocol: Protocol = "fedsgd",
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object on stdout.")] = False,
) -> None:
    """Estimate how often each class occurs in a client's batch, from its update alone."""
    model = chosen_victim(victim, classes=classes, size=size, seed=victim_seed)
    upload = Upload(
        update=read_capture(update, model).update,
        model=model,
        protocol=catalog.protocol(protocol, images=batch_size),
        image_shape=(len(model.mean), size, size),
        batch_size=batch_size,
    )
    observation = observe(upload)
    found = _estimator(estimator, own, own_labels, size)(observation)
    if batch_size == 1 and (reading := read_label(observation)).doubt is not None:
        terminal.note(f"the label is not reliable: {reading.refusal()}")
    rows = [
        (str(label), str(int(count)), f"{float(share):.2f}", f"{float(sure):.2f}")
        for label, (count, share, sure) in enumerate(
            zip(found.counts, found.shares, found.confidence, strict=True)
        )
        if count > 0
    ]
    if json:
        told = {
            "labels": found.labels.tolist(),
            "counts": found.counts.tolist(),
            "shares": found.shares.tolist(),
            "confidence": found.confidence.tolist(),
            "estimator": estimator,
            "batch_size": batch_size,
        }
        sys.stdout.write(jsonlib.dumps(told) + "\n")
        return
    terminal.table(f"{batch_size} labels", ("class", "count", "estimate", "confidence"), rows)


def _estimator(name: str, own: Path | None, pattern: str, size: int) -> LabelEstimator:
    if name != "own-images":
        return catalog.label_estimator(name)
    if own is None:
        raise InputError("expected the attacker's own images for 'own-images': give --own FILE")
    data = read_image_set(own, size=size, labels=pattern)
    assert data.labels is not None
    return AuxiliaryLeastSquares(images=data.images.float() / 255, labels=data.labels)
