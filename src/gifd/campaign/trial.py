"""Trial: one client's private images and one attack, run and scored."""

from __future__ import annotations

import hashlib
import math
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacker.observe import known_attacker, observe
from gifd.attacks import Attack, Reconstruction
from gifd.campaign.record import ImageRecord, Number, Outcome, PhaseRecord, Record, as_scores
from gifd.errors import GifdError
from gifd.federation.client import Client
from gifd.federation.secret import Secret
from gifd.metrics import Metric, match, score
from gifd.search import Callback

LOT = 64
"""The most trials that are run together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A planned trial.

    Args:
        names: names of the private images, for the record.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) their class indices.
        client: the client that holds them.
        victim: origin of the model, for the record.
        attack: the attack.
        metrics: computed for the answer and for every phase.
        attacker: what the attacker knows of the client's defences: 'static', 'adaptive' or
            'estimated' (`observe`).
        seed: seed of the attack.
        sizes: width and height of each image's file, for the record, if known.

    Raises:
        InputError: an unknown attacker.
    """

    names: Sequence[str]
    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, "B"]
    client: Client
    victim: Mapping[str, object]
    attack: Attack
    metrics: Sequence[Metric]
    attacker: str = "adaptive"
    seed: int = 0
    sizes: Sequence[tuple[int, int] | None] | None = None

    def __post_init__(self) -> None:
        known_attacker(self.attacker)

    @property
    def name(self) -> str:
        """The first image's name, and the number of further images."""
        more = len(self.names) - 1
        return self.names[0] + (f" and {more} more" if more else "")

    def run(self, callback: Callback | None = None) -> Outcome:
        """Run the client's step, the attack and the metrics.

        Raises:
            GifdError: an error of the client, the attack or a metric.
        """
        (outcome,) = run_together([self], callback)
        if isinstance(outcome, GifdError):
            raise outcome
        return outcome

    def observed(self) -> tuple[Observation, Secret]:
        """What the attacker sees of the client's step, and the private batch.

        Raises:
            GifdError: whatever the client refuses.
        """
        upload, secret = self.client.step(self.images, self.labels)
        defenses = self.client.defenses
        return observe(upload, attacker=self.attacker, defenses=defenses), secret

    def scored(self, observation: Observation, secret: Secret, found: Reconstruction) -> Outcome:
        """The outcome of an attack, each reconstruction paired with a private image."""
        truth = secret.images
        order = match(found.images, truth).to(truth.device)
        phases = tuple(p.images[match(p.images, truth).to(truth.device)] for p in found.phases)
        answer = found.images[order]
        return Outcome(
            record=self._record(observation, secret, found, order.tolist()),
            private=truth.cpu(),
            answer=answer.cpu(),
            phases=tuple(images.cpu() for images in phases),
        )

    def _record(
        self,
        observation: Observation,
        secret: Secret,
        found: Reconstruction,
        order: Sequence[int],
    ) -> Record:
        used, asked = found.labels.tolist(), found.prior_labels
        values = score(found.images, secret.images, self.metrics)
        sizes = self.sizes or [None] * len(self.names)
        images = [
            ImageRecord(
                name=name,
                sha256=_sha256(image),
                label=label,
                label_used=used[place],
                prior_label=None if asked is None else int(asked[place]),
                original_size=size,
                **as_scores({metric: _finite(values[metric][i]) for metric in values}),
            )
            for i, (name, image, label, place, size) in enumerate(
                zip(self.names, self.images, self.labels.tolist(), order, sizes, strict=True)
            )
        ]
        return Record(
            image=self.name,
            images=images,
            attack=self.attack.name,
            preset=self.attack.preset,
            **_means(values),
            distance=_finite(found.distance),
            selection=str(found.selection),
            phase=found.phase,
            seconds=found.seconds,
            evaluations=found.evaluations,
            seed=found.seed,
            interrupted=found.interrupted,
            dropped=list(found.dropped),
            at_once=found.at_once,
            label_source=found.label_source,
            label_hypotheses=found.hypotheses,
            defenses=[repr(defense) for defense in self.client.defenses],
            ledger=dict(observation.grants()),
            victim=dict(self.victim)
            | {
                "training": self.client.model.training,
                "mean": list(self.client.model.mean),
                "std": list(self.client.model.std),
            },
            settings=self.attack.describe(),
            phases=[
                PhaseRecord(
                    name=phase.name,
                    distance=_finite(phase.distance),
                    **_means(score(phase.images, secret.images, self.metrics)),
                    curve=[[_finite(value) for value in row] for row in phase.curve],
                    smoothing=phase.measure.smoothing,
                    restarts=list(phase.restarts),
                    best_restart=phase.best_restart,
                    dropped=list(phase.dropped),
                    evaluations=phase.evaluations,
                    seconds=phase.seconds,
                )
                for phase in found.phases
            ],
            device=str(self.client.model.device),
            threads=torch.get_num_threads(),
            tf32=_tf32(self.client.model.device),
            peak_memory_bytes=_peak_memory(self.client.model.device),
            versions={
                "gifd": version("gifd"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def run_together(
    trials: Sequence[Trial], callback: Callback | None = None
) -> list[Outcome | GifdError]:
    """Run trials of one attack, as many at once as fit the memory (`Attack.many`).

    Args:
        trials: at least one, all of the same attack.
        callback: told of the whole.

    Returns:
        an outcome each, or the error that this one ended in.

    Raises:
        KeyboardInterrupt: before anything was found.
    """
    outcomes: dict[int, Outcome | GifdError] = {}
    seen: dict[int, tuple[Observation, Secret]] = {}
    for place, trial in enumerate(trials):
        try:
            seen[place] = trial.observed()
        except GifdError as error:
            outcomes[place] = error
    answers = trials[0].attack.many(
        [observation for observation, _ in seen.values()],
        seeds=[trials[place].seed for place in seen],
        callback=callback,
    )
    for (place, (observation, secret)), answer in zip(seen.items(), answers, strict=True):
        if isinstance(answer, GifdError):
            outcomes[place] = answer
        else:
            outcomes[place] = trials[place].scored(observation, secret, answer)
    return [outcomes[place] for place in range(len(trials))]


def lots(trials: Iterable[Trial]) -> Iterator[list[Trial]]:
    """Trials that are run together: on a CPU each alone, on an accelerator those of one attack.

    Of these at most `LOT` together, so that an interruption costs no more.
    """
    waiting: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.client.model.device.type == "cpu":
            yield [trial]
            continue
        same = waiting.setdefault(id(trial.attack), [])
        same.append(trial)
        if len(same) == LOT:
            yield waiting.pop(id(trial.attack))
    yield from waiting.values()


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each metric's mean over the batch."""
    return as_scores({name: _finite(sum(each) / len(each)) for name, each in values.items()})


def _sha256(image: Tensor) -> str:
    """SHA-256 of the image's pixels in 8 bits."""
    pixels = (image.cpu() * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
    return hashlib.sha256(pixels).hexdigest()


def _finite(value: float) -> Number:
    return value if math.isfinite(value) else None


def _tf32(device: torch.device) -> bool | None:
    """Whether convolutions or products are rounded to TF32; None where there is no such thing."""
    if device.type != "cuda":
        return None
    return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32


def _peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: the accelerator's allocator, or this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
