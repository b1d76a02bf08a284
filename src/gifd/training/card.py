"""The model card: the origin of weights, next to them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch

from gifd.errors import InputError, one_line
from gifd.metrics import kernel_distance
from gifd.training.trainer import Trainer


def card_path(out: Path) -> Path:
    """Next to the weights."""
    return out.with_suffix(".md")


def score(trainer: Trainer, count: int, *, offline: bool = False) -> float:
    """`kernel_distance` between `count` samples and as many training images, evenly spaced.

    Raises:
        InputError: fewer than two of either.
        WeightsError: AlexNet's weights cannot be loaded.
    """
    prior = trainer.checkpoint().generator(name="trained", latent="z")
    data = trainer.data
    chosen = torch.linspace(0, len(data) - 1, min(count, len(data))).round().long()
    labels = None if data.labels is None else data.labels[chosen]
    samples = prior.sample(len(chosen), seed=0, labels=labels)
    return kernel_distance(data.images[chosen].float() / 255, samples, offline=offline)


def write_card(
    trainer: Trainer, out: Path, *, licence: str, command: str, distance: float | None, scored: int
) -> Path:
    """Write the card of the weights at `out`.

    Args:
        trainer: the trainer that made them.
        out: the weights.
        licence: of the data, and so of the weights.
        command: the command that makes them.
        distance: their `score`, or None if it was not computed.
        scored: the number of samples for `score`.

    Raises:
        InputError: it cannot be written.
    """
    data, recipe = trainer.data, trainer.recipe
    content = out.read_bytes()
    count = sum(parameter.numel() for parameter in trainer.average.parameters())
    classes = f"{len(data.classes)} classes: {', '.join(data.classes)}" if data.classes else "none"
    measured = "not measured"
    if distance is not None:
        measured = f"{distance:.2f} ({scored} samples; 0 is the training data itself)"
    rows = {
        "architecture": f"StyleGAN2, {data.size} px, channels {trainer.channels}",
        "parameters": f"{count:,}",
        "file": f"{len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        "data": f"{data.source}: {len(data):,} images",
        "labels": classes,
        "licence": licence,
        "trained": f"{trainer.seen:,} images, {trainer.steps:,} steps of {recipe.batch}",
        "kernel distance": measured,
        "seed": str(recipe.seed),
        "PyTorch": f"{torch.__version__} on {trainer.device.type}",
    }
    settings = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(recipe).items())
    text = "\n".join(
        [
            f"# {out.stem}",
            "",
            "A prior for gradient inversion, trained with `gifd prior train`.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
            f"Recipe: {settings}.",
            "",
            "Made by",
            "",
            f"    {command}",
            "",
        ]
    )
    path = card_path(out)
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"expected to write '{path}', got: {one_line(error)}") from None
    return path
