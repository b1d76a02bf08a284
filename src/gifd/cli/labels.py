"""`gifd labels`: which classes are in an update, and how often."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog, terminal
from gifd.attacker.observe import observe
from gifd.captures import read_capture
from gifd.cli.choices import chosen_victim
from gifd.cli.options import Classes, FormerSize, Protocol, Shape, Victim, VictimSeed, shape_of
from gifd.errors import InputError
from gifd.federation.upload import Upload
from gifd.images import class_in, read_images
from gifd.leakage.counts import AuxiliaryLeastSquares, LabelEstimator
from gifd.leakage.one_label import read_label
from gifd.terminal import one_line_errors


@one_line_errors
def labels(
    update: Annotated[
        Path, typer.Argument(help="The client's update: safetensors, torch.save, or .npz.")
    ],
    batch_size: Annotated[int, typer.Option(help="Number of private images.", min=1)],
    victim: Victim = "resnet18",
    classes: Classes = 10,
    shape: Shape = None,
    size: FormerSize = None,
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
    model, image_shape = chosen_victim(
        victim, classes=classes, shape=shape_of(shape, size), seed=victim_seed
    )
    upload = Upload(
        update=read_capture(update, model).update,
        model=model,
        protocol=catalog.protocol(protocol, images=batch_size),
        image_shape=image_shape,
        batch_size=batch_size,
    )
    observation = observe(upload)
    found = _estimator(estimator, own, own_labels, image_shape)(observation)
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


def _estimator(
    name: str, own: Path | None, pattern: str, shape: tuple[int, int, int]
) -> LabelEstimator:
    if name != "own-images":
        return catalog.label_estimator(name)
    if own is None:
        raise InputError("expected the attacker's own images for 'own-images': give --own FILE")
    found = list(read_images(own, size=shape[1:], channels=shape[0]))
    labels = [class_in(name, pattern) for name, _ in found]
    return AuxiliaryLeastSquares(
        images=torch.stack([image for _, image in found]), labels=torch.tensor(labels)
    )
