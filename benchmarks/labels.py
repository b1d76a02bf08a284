"""Compare estimators of label counts on untrained, early and trained victims.

    python benchmarks/labels.py photos.zip --labels 'class([0-9]+)'

A third of the images trains the victim (the ConvNet, Adam), a third is the attacker's own, and
batches are drawn from the last third at random, with replacement. A row gives, for each batch
size, the share of labels found, corrected for chance: 0 is random guessing, 1 is perfect. One
victim is trained: intervals are over the n batches and hold for this victim. Nothing is written to
a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.errors import InputError
from gifd.federation.client import Client
from gifd.interval import written
from gifd.leakage.counts import (
    AuxiliaryLeastSquares,
    ClassEmbeddings,
    Distinct,
    DummyMean,
    Impact,
    LabelEstimator,
)
from gifd.model import Model
from gifd.training import read_image_set
from gifd.victims import IMAGENET_MEAN, IMAGENET_STD, ConvNet


def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of labelled images.")],
    labels: Annotated[str, typer.Option(help="Regular expression of the class in a path.")],
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    steps: Annotated[str, typer.Option(help="Steps of training, ascending.")] = "0,30,400",
    draws: Annotated[int, typer.Option(help="Batches of each size.")] = 30,
    protocol: Annotated[str, typer.Option(help="E.g. 'fedavg:lr=0.1,steps=4'.")] = "fedsgd",
    size: int = 64,
) -> None:
    """Print one table per victim."""
    data = read_image_set(source, size=size, labels=labels)
    assert data.labels is not None
    rng = torch.Generator().manual_seed(0)
    parts = torch.randperm(len(data.labels), generator=rng).chunk(3)
    images, classes = data.images.float() / 255, len(data.classes)
    (train, own, held) = ((images[part], data.labels[part]) for part in parts)
    own = (own[0][:500], own[1][:500])
    torch.manual_seed(0)
    module = ConvNet(classes)
    computed = catalog.protocol(protocol, images=max(int(b) for b in batches.split(",")))
    sizes = [int(b) for b in batches.split(",")]
    done = 0
    for upto in (int(s) for s in steps.split(",")):
        fit(module, *train, upto - done, rng)
        done = upto
        model = Model(module=module.eval(), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        client = Client(model=model, protocol=computed)
        with torch.no_grad():
            logits = model.logits(model.parameters, model.buffers, held[0][:512])
        accuracy = float((logits.argmax(1) == held[1][:512]).float().mean())
        told = f"{upto} steps, accuracy {accuracy:.2f}"
        typer.echo(f"\n{told}; one victim, n = {draws} batches of each size\n")
        typer.echo(
            f"| estimator | {' | '.join(f'B = {b}' for b in sizes)} |\n|---|" + "---|" * len(sizes)
        )
        estimators: dict[str, LabelEstimator] = {
            "distinct (Yin)": Distinct(),
            "impact (LLG)": Impact(),
            "dummy mean (Geng)": DummyMean(),
            "class embeddings (iLRG)": ClassEmbeddings(),
            "own images, least squares": AuxiliaryLeastSquares(images=own[0], labels=own[1]),
        }
        for name, estimator in estimators.items():
            cells = [cell(estimator, client, held, batch, draws, classes) for batch in sizes]
            typer.echo(f"| {name} | {' | '.join(cells)} |")


def cell(
    estimator: LabelEstimator,
    client: Client,
    held: tuple[Tensor, Tensor],
    batch: int,
    draws: int,
    classes: int,
) -> str:
    """Mean and interval of the corrected share over `draws` batches."""
    values = []
    for seed in range(draws):
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(held[1]), (batch,), generator=rng)
        upload, secret = client.step(held[0][chosen], held[1][chosen])
        observation = observe(upload)
        true = torch.bincount(secret.labels, minlength=classes)
        guesses = torch.randint(classes, (500, batch), generator=rng)
        chance = float(
            torch.stack(
                [overlap(torch.bincount(g, minlength=classes), true) for g in guesses]
            ).mean()
        )
        try:
            found = float(overlap(estimator(observation).counts, true))
        except InputError:
            return "-"
        values.append((found - chance) / (1 - chance))
    return written(values)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """The share of labels that two counts have in common."""
    return torch.minimum(a, b).sum() / b.sum()


def fit(module: ConvNet, images: Tensor, labels: Tensor, steps: int, rng: torch.Generator) -> None:
    """`steps` steps of Adam on batches of 64."""
    module.train()
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)
    mean, std = (torch.tensor(m).view(-1, 1, 1) for m in (IMAGENET_MEAN, IMAGENET_STD))
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,), generator=rng)
        adam.zero_grad()
        loss = F.cross_entropy(module((images[chosen] - mean) / std), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()


if __name__ == "__main__":
    typer.run(main)
