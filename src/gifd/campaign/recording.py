"""Recording: from an attack's answer to the record and the pictures of a trial."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.attacks import Attack, Reconstruction
from gifd.campaign.record import (
    Evidence,
    ImageRecord,
    Outcome,
    PhaseRecord,
    Record,
    as_scores,
    finite,
    label,
)
from gifd.metrics import Metric, match, score


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """What is known of a trial besides the attack's answer.

    Args:
        name: of the trial.
        names: of the images.
        attack: the attack.
        observation: what it had.
        victim: origin of the model.
        metrics: computed for the answer and for every phase, if there is a truth.
        truth: (B, C, H, W) in [0, 1], the private images; None if they are unknown.
        labels: (B,) their class indices, or what else the loss takes (B, ...), if known.
        defenses: the client's.
        sizes: width and height of each image's file, if known.
    """

    name: str
    names: Sequence[str]
    attack: Attack
    observation: Observation
    victim: Mapping[str, object]
    metrics: Sequence[Metric] = ()
    truth: Float[Tensor, "B C H W"] | None = None
    labels: Shaped[Tensor, "B *T"] | None = None
    defenses: Sequence[str] = ()
    sizes: Sequence[tuple[int, int] | None] | None = None

    def outcome(self, found: Reconstruction, evidence: Evidence | None = None) -> Outcome:
        """The record and the pictures, each reconstruction paired with a private image."""
        truth = self.truth
        order = torch.arange(len(found.images)) if truth is None else match(found.images, truth)

        def paired(images: Tensor) -> Tensor:
            own = order if truth is None else match(images, truth)
            return images[own.to(images.device)].cpu()

        return Outcome(
            record=self._record(found, order.tolist(), evidence),
            private=None if truth is None else truth.cpu(),
            answer=found.images[order.to(found.images.device)].cpu(),
            phases=tuple(paired(phase.images) for phase in found.phases),
        )

    def _scores(self, images: Tensor) -> dict[str, list[float]]:
        return {} if self.truth is None else score(images, self.truth, self.metrics)

    def _record(
        self, found: Reconstruction, order: Sequence[int], evidence: Evidence | None
    ) -> Record:
        model, truth = self.observation.model, self.truth
        used, asked = found.labels, found.prior_labels
        values = self._scores(found.images)
        sizes = self.sizes or [None] * len(self.names)
        images = [
            ImageRecord(
                name=name,
                sha256=None if truth is None else _sha256(truth[i]),
                label=None if self.labels is None else label(self.labels[i]),
                label_used=label(used[place]),
                prior_label=None if asked is None else int(asked[place]),
                original_size=size,
                **as_scores({metric: finite(values[metric][i]) for metric in values}),
            )
            for i, (name, place, size) in enumerate(zip(self.names, order, sizes, strict=True))
        ]
        return Record(
            image=self.name,
            images=images,
            attack=self.attack.name,
            preset=self.attack.preset,
            **_means(values),
            distance=finite(found.distance),
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
            defenses=list(self.defenses),
            ledger=dict(self.observation.grants()),
            victim=dict(self.victim)
            | {"training": model.training, "mean": list(model.mean), "std": list(model.std)},
            settings=self.attack.describe(),
            phases=[
                PhaseRecord(
                    name=phase.name,
                    distance=finite(phase.distance),
                    **_means(self._scores(phase.images)),
                    curve=[[finite(value) for value in row] for row in phase.curve],
                    smoothing=phase.measure.smoothing,
                    restarts=list(phase.restarts),
                    best_restart=phase.best_restart,
                    dropped=list(phase.dropped),
                    evaluations=phase.evaluations,
                    seconds=phase.seconds,
                )
                for phase in found.phases
            ],
            evidence=evidence,
            truth=truth is not None,
            device=str(model.device),
            threads=torch.get_num_threads(),
            tf32=_tf32(model.device),
            peak_memory_bytes=_peak_memory(model.device),
            versions={
                "gifd": version("gifd"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each metric's mean over the batch."""
    return as_scores({name: finite(sum(each) / len(each)) for name, each in values.items()})


def _sha256(image: Tensor) -> str:
    """SHA-256 of the image's pixels in 8 bits."""
    pixels = (image.cpu() * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
    return hashlib.sha256(pixels).hexdigest()


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
