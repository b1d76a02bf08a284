"""A training run: limited by images or minutes, saved regularly, resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from gifd.errors import InputError, WeightsError, one_line
from gifd.files import is_file
from gifd.images import grid, write_image
from gifd.priors import write_checkpoint
from gifd.tensor_files import (
    check_ending,
    read_metadata,
    read_tensors,
    require_finite,
    write_tensors,
)
from gifd.training.data import ImageSet
from gifd.training.recipe import Recipe
from gifd.training.trainer import Losses, Trainer

SAMPLES = 36


@dataclass(frozen=True, kw_only=True)
class Stand:
    """The progress of a run, for callbacks.

    Args:
        seen, images: images shown so far, and in total.
        rate: images per second, in this run.
        left: seconds to the end.
        p: probability of each augmentation.
        losses: of this step.
    """

    seen: int
    images: int
    rate: float
    left: float
    p: float
    losses: Losses


def state_path(out: Path) -> Path:
    """Where a run that writes `out` keeps its state for resuming."""
    return out.with_suffix(".state.safetensors")


def train(
    data: ImageSet,
    recipe: Recipe,
    out: Path,
    *,
    images: int,
    minutes: float | None = None,
    save_every: int = 50_000,
    resume: bool = False,
    device: torch.device | str = "cpu",
    callback: Callable[[Stand], None] | None = None,
) -> Trainer:
    """Train until `images` were shown, in this run and earlier ones.

    Writes the averaged generator to `out` (half precision) and, next to it, a sheet of samples
    (`.png`) and the training state (`.state.safetensors`). Writes are atomic. Ctrl-C ends the run
    after the current step, and saves.

    Args:
        data: the training images.
        recipe: all settings.
        out: ends in .safetensors.
        images: total number of images to show.
        minutes: stop after this time; `resume` continues later.
        save_every: images between two saves.
        resume: continue from the state next to `out`; bit for bit on the same machine.
        device: where to train.
        callback: receives the progress at every step.

    Raises:
        InputError: a state without `resume`, `resume` without one, or one of another recipe or
            data; a folder that cannot be written to; fewer images than a batch.
        WeightsError: the state is damaged.
    """
    check_ending(out)
    if len(data) < recipe.batch:
        raise InputError(f"expected at least a batch of {recipe.batch} images, got {len(data)}")
    trainer = Trainer(data, recipe, device=device)
    identity = _identity(data, recipe)
    if resume:
        _restore(trainer, state_path(out), identity)
    elif is_file(state_path(out)):
        raise InputError(
            f"expected no earlier run at '{state_path(out)}': resume it, or delete the file"
        )
    else:
        _save(trainer, out, identity)  # fail now if it cannot be written
    began, first, saved = time.perf_counter(), trainer.seen, trainer.seen
    with _patient() as interrupted:
        while trainer.seen < images and not interrupted():
            losses = trainer.step()
            if not math.isfinite(losses.generator + losses.discriminator):
                raise InputError(
                    f"training became non-finite at {trainer.seen} images; '{out}' was last saved "
                    f"at {saved}: start again with a lower learning rate or a larger gamma"
                )
            spent = time.perf_counter() - began
            rate = (trainer.seen - first) / spent
            if callback is not None:
                left = (images - trainer.seen) / rate
                if minutes is not None:
                    left = min(left, minutes * 60 - spent)
                callback(
                    Stand(
                        seen=trainer.seen,
                        images=images,
                        rate=rate,
                        left=max(left, 0.0),
                        p=trainer.p,
                        losses=losses,
                    )
                )
            if trainer.seen - saved >= save_every:
                _save(trainer, out, identity)
                saved = trainer.seen
            if minutes is not None and spent >= minutes * 60:
                break
        if trainer.seen > saved:
            _save(trainer, out, identity)
    return trainer


@contextmanager
def _patient() -> Iterator[Callable[[], bool]]:
    """A context that defers Ctrl-C, so that steps are completed; yields whether it was pressed.

    A second Ctrl-C interrupts at once. It does nothing outside the main thread.
    """
    noted = False
    usual = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True
        signal.signal(signal.SIGINT, usual)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, usual)


def _identity(data: ImageSet, recipe: Recipe) -> dict[str, str]:
    """What must be equal to resume a run."""
    digest = hashlib.sha256(data.images.numpy().tobytes())
    if data.labels is not None:
        digest.update(data.labels.numpy().tobytes())
    return {"recipe": json.dumps(dataclasses.asdict(recipe)), "data": digest.hexdigest()}


def _save(trainer: Trainer, out: Path, identity: dict[str, str]) -> None:
    checkpoint = trainer.checkpoint()
    write_checkpoint(checkpoint, out)
    samples = checkpoint.generator(name=out.stem, latent="z").sample(SAMPLES, seed=0)
    write_image(grid(samples), out.with_suffix(".png"))
    write_tensors(trainer.state(), {"format": "gifd training", **identity}, state_path(out))


def _restore(trainer: Trainer, path: Path, identity: dict[str, str]) -> None:
    if not is_file(path):
        raise InputError(f"expected a state to resume at '{path}', found none: start without it")
    state = read_tensors(path)
    metadata = read_metadata(path)
    for what, expected in identity.items():
        if metadata.get(what) != expected:
            other = _difference(metadata.get(what), expected)
            raise InputError(f"expected the {what} of the run at '{path}', got {other}")
    require_finite({name: tensor for name, tensor in state.items() if name != "rng"}, path)
    try:
        trainer.load(state)
    except (LookupError, RuntimeError, ValueError, TypeError) as error:
        reason = one_line(error)
        raise WeightsError(f"{path} is not a complete training state: {reason}") from None


def _difference(before: str | None, now: str) -> str:
    """The differences between two recipes, or that the data differ."""
    try:
        old, new = json.loads(before or ""), json.loads(now)
        changed = [f"{k}={new[k]} (it had {old.get(k)})" for k in new if new[k] != old.get(k)]
    except (ValueError, RecursionError, AttributeError):
        return "other images"
    return one_line(", ".join(changed))
