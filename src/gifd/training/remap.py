"""Training a remapper, on the prior's training data or on samples of the prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gifd.errors import InputError
from gifd.priors import Generator
from gifd.priors.remapper import Remapper, RemapperNet
from gifd.training.data import ImageSet

BATCH, LR = 64, 2e-3
REMAPPER_STEPS = 400
HELD_OUT = 512


def train_remapper(
    source: Generator | ImageSet,
    *,
    steps: int = REMAPPER_STEPS,
    seed: int = 0,
    name: str = "remapper",
    device: torch.device | str = "cpu",
    callback: Callable[[int, float], None] | None = None,
) -> Remapper:
    """Train a small classifier for a prior's classes, also on blurred and noisy images.

    Images from a coarse search are blurred and noisy, so half of the training images are too.

    Args:
        source: a conditional prior, from which images are sampled; or images with labels, of
            which every tenth is held out to measure the accuracy.
        steps: steps of AdamW, 64 images each.
        seed: seed of all randomness.
        name: for records.
        device: where to train.
        callback: called with every step and its loss.

    Raises:
        InputError: fewer than two classes, or than ten images.
    """
    classes = len(source.classes) if isinstance(source, ImageSet) else source.classes or 0
    if classes < 2:
        raise InputError(f"expected a source with at least 2 classes, got {classes}")
    colours = source.colours if isinstance(source, ImageSet) else source.image_shape[0]
    draw, held_out = (
        _of_images(source, seed)
        if isinstance(source, ImageSet)
        else _of_prior(source.to(device), seed)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RemapperNet(classes, colours=colours).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        images, labels = draw(step)
        loss = F.cross_entropy(net(_worn(images, rng).to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if callback is not None:
            callback(step, float(loss.detach()))
    images, labels = held_out
    with torch.no_grad():
        logits = torch.cat([net.eval()(part) for part in images.to(device).split(BATCH)])  # type: ignore[no-untyped-call]
    accuracy = float((logits.argmax(1).cpu() == labels).float().mean())
    return Remapper(net=net.cpu(), classes=classes, accuracy=accuracy, name=name)


Draw = Callable[[int], tuple[Tensor, Tensor]]


def _of_prior(prior: Generator, seed: int) -> tuple[Draw, tuple[Tensor, Tensor]]:
    def draw(step: int, count: int = BATCH) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        labels = torch.randint(prior.classes or 1, (count,), generator=rng)
        return prior.sample(count, seed=seed * 1_000_003 + step, labels=labels).cpu(), labels

    parts = [draw(-1 - i) for i in range(HELD_OUT // BATCH)]
    images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return draw, (images, labels)


def _of_images(data: ImageSet, seed: int) -> tuple[Draw, tuple[Tensor, Tensor]]:
    if data.labels is None:
        raise InputError("expected images with labels, got none")
    if len(data) < 10:
        raise InputError(
            f"expected at least 10 images, of which every tenth is held out, got {len(data)}"
        )
    out = torch.arange(len(data)) % 10 == 9
    learnt = ImageSet(
        images=data.images[~out], labels=data.labels[~out], classes=data.classes, source=data.source
    )

    def draw(step: int) -> tuple[Tensor, Tensor]:
        images, labels = learnt.batch(step * BATCH, min(BATCH, len(learnt)), seed)
        assert labels is not None
        return (images + 1) / 2, labels

    return draw, (data.images[out].float() / 255, data.labels[out])


def _worn(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror half of the images; blur half and add noise."""
    count = len(images)

    def half() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=rng) < 0.5

    images = torch.where(half(), images.flip(3), images)
    blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), 5, stride=1)
    noise = torch.randn(images.shape, generator=rng) * torch.rand(count, 1, 1, 1, generator=rng)
    return torch.where(half(), (blurred + 0.2 * noise).clamp(0, 1), images)
