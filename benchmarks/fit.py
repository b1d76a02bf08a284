"""How often the test of fit is wrong: honest clients called unexplained, others explained.

    python benchmarks/fit.py images.zip --match 'face_*' --clients 50

Clients with private images of the folder compute updates in many ways; the attacker believes in
one. Each client has its own victim, images and labels. The tables show the share of updates that
are called unexplained, which should be 0 in the first row and 1 in the others, and the median
misfit.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from gifd import catalog
from gifd.attacker.observe import observe
from gifd.audit import Fit, fit
from gifd.federation.defenses import Defense, Quantize, Sparsify, wrapped
from gifd.federation.optimizers import SGD, Adam
from gifd.federation.protocols import FedAvg, FedSGD, Protocol
from gifd.federation.upload import Upload
from gifd.images import read_images
from gifd.model import Model
from gifd.terminal import one_line_errors
from gifd.updates import Update


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What differs from the attacker's belief: a FedAvg of four steps at rate 0.01, or FedSGD."""

    protocol: Callable[[FedAvg], Protocol] = lambda belief: belief
    model: Callable[[Model], Model] = lambda model: model
    defenses: tuple[Defense, ...] = ()
    images: int = 1
    sent: Callable[[Update], Update] = lambda update: update


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with smoothed labels."""
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over the batch instead of the mean."""
    return F.cross_entropy(logits, labels, reduction="sum")


def trained(model: Model) -> Model:
    """With batch norm in training mode."""
    return replace(model, module=copy.deepcopy(model.module).train())


def other(model: Model) -> Model:
    """With the weights of another round: all multiplied by noise of a third."""
    rng = torch.Generator().manual_seed(0)
    drawn = {n: 1 + 0.3 * torch.randn(p.shape, generator=rng) for n, p in model.parameters.items()}
    return model.at({name: p * drawn[name] for name, p in model.parameters.items()})


TRUTHS: dict[str, Truth] = {
    "as believed": Truth(),
    "in half precision": Truth(sent=lambda u: u.map(lambda t: t.half().to(t))),
    "Adam": Truth(protocol=lambda p: replace(p, optimizer=Adam(), lr=0.001)),
    "AdamW": Truth(
        protocol=lambda p: replace(p, optimizer=Adam(weight_decay=0.01, decoupled=True), lr=0.001)
    ),
    "weight decay 0.01": Truth(protocol=lambda p: replace(p, optimizer=SGD(weight_decay=0.01))),
    "weight decay 0.0005": Truth(protocol=lambda p: replace(p, optimizer=SGD(weight_decay=0.0005))),
    "momentum 0.9": Truth(protocol=lambda p: replace(p, optimizer=SGD(momentum=0.9))),
    "three times the rate": Truth(protocol=lambda p: replace(p, lr=0.03)),
    "three times the steps": Truth(protocol=lambda p: replace(p, steps=12)),
    "shuffled": Truth(protocol=lambda p: replace(p, shuffle=1)),
    "twice the images": Truth(images=2),
    "smoothed labels": Truth(model=lambda m: replace(m, loss=smoothed)),
    "summed loss": Truth(model=lambda m: replace(m, loss=summed)),
    "batch norm in training": Truth(model=trained),
    "weights of another round": Truth(model=other),
    "another normalisation": Truth(
        model=lambda m: replace(m, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    ),
    "the wrong sign": Truth(sent=lambda update: -update),
    "noise of a tenth": Truth(sent=lambda u: _noisy(u, 0.1)),
    "QSGD of 16 levels": Truth(defenses=(Quantize(scheme="qsgd"),)),
    "a tenth of the numbers": Truth(defenses=(Sparsify(rate=0.9),)),
}


def _noisy(update: Update, share: float) -> Update:
    """Gaussian noise of this share of the update's length."""
    std, rng = share * float(update.norm()) / update.numel**0.5, torch.Generator().manual_seed(0)
    return update.map(lambda tensor: tensor + std * torch.randn(tensor.shape, generator=rng))


@one_line_errors
def main(
    source: Annotated[Path, typer.Argument(help="Folder or zip of images.")],
    match: Annotated[str, typer.Option(help="Pattern of the file names to use.")] = "*",
    clients: Annotated[int, typer.Option(help="Number of clients of each kind.", min=1)] = 10,
    victim: str = "convnet",
    batch_size: int = 4,
    believed: Annotated[str, typer.Option(help="fedavg or fedsgd.")] = "fedavg",
    simulated: Annotated[int, typer.Option(help="Simulated clients of a test.", min=10)] = 40,
    truths: Annotated[str, typer.Option(help="Comma-separated; default: all.")] = "",
    size: int = 64,
    threads: int = 0,
) -> None:
    """Print one table."""
    if threads:
        torch.set_num_threads(threads)
    pictures = torch.stack([image for _, image in read_images(source, match=match, size=size)])
    rng = torch.Generator().manual_seed(0)
    chosen = [name.strip() for name in truths.split(",")] if truths else list(TRUTHS)
    found: dict[str, list[Fit]] = {name: [] for name in chosen}
    for client in range(clients):
        model = catalog.victim(victim, classes=10, size=size, seed=client)
        local = FedAvg(steps=4, lr=0.01, batch_size=max(1, batch_size // 2))
        belief: Protocol = local if believed == "fedavg" else FedSGD()
        own = torch.randperm(len(pictures), generator=rng)[: 2 * batch_size]
        labels = torch.randint(10, (2 * batch_size,), generator=rng)
        for name in chosen:
            truth = TRUTHS[name]
            protocol = belief if believed == "fedsgd" else truth.protocol(local)
            if truth.protocol is not Truth().protocol and believed == "fedsgd":
                continue
            count, seen = truth.images * batch_size, truth.model(model)
            if seen.training and isinstance(protocol, FedAvg) and protocol.batch_size == 1:
                continue  # a batch norm in training mode refuses one image
            real = wrapped(truth.defenses, protocol, client)
            images, classes = pictures[own[:count]], labels[:count]
            update = real(seen, seen.parameters, seen.buffers, images, classes).detach()
            upload = Upload(
                update=truth.sent(update),
                model=model,
                protocol=belief,
                image_shape=tuple(images.shape[1:]),  # type: ignore[arg-type]
                batch_size=batch_size,
                labels=labels[:batch_size],
            )
            found[name].append(fit(observe(upload), labels[:batch_size], clients=simulated))
    typer.echo(f"{victim}, {believed}, {batch_size} images; n = {clients} clients of each kind\n")
    typer.echo("| client | unexplained | median misfit | most frequent reason |\n|---|---|---|---|")
    for name, fits in found.items():
        if fits:
            share = sum(not each.explained for each in fits) / len(fits)
            median = statistics.median(each.misfit for each in fits)
            reason = statistics.mode(
                each.reason.partition("' ")[2].partition(";")[0] for each in fits
            )
            typer.echo(f"| {name} | {share:.2f} | {median:.2f} | {reason} |")


if __name__ == "__main__":
    typer.run(main)
