"""Trial: one private image, one victim, one attack, run and scored."""

from __future__ import annotations

import hashlib
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacks import Attack, Reconstruction
from gifd.campaign.record import Number, Outcome, PhaseRecord, Record
from gifd.inversion import Callback
from gifd.metrics import Metric, score
from gifd.model import Model
from gifd.observation import Observation, Secret
from gifd.protocols import FedSGD, Protocol
from gifd.victims import Client


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What is to be done.

    Args:
        name: the private image's name, for the record.
        image: (C, H, W) in [0, 1].
        label: its class index.
        model: the victim.
        victim: how the victim came about, for the record.
        attack: the attack.
        metrics: computed for the answer and for every phase.
        seed: of the attack.
        protocol: what the client computes.
    """

    name: str
    image: Float[Tensor, "C H W"]
    label: int
    model: Model
    victim: Mapping[str, object]
    attack: Attack
    metrics: Sequence[Metric]
    seed: int = 0
    protocol: Protocol = FedSGD()

    def run(self, callback: Callback | None = None) -> Outcome:
        """The client computes its update, the attack inverts it, the metrics compare.

        Raises:
            GifdError: whatever the client or the attack refuses.
        """
        client = Client(model=self.model, protocol=self.protocol)
        observation, secret = client.step(self.image[None], torch.tensor([self.label]))
        found = self.attack(observation, seed=self.seed, callback=callback)
        record = _record(self, observation, secret, found)
        return Outcome(
            record=record,
            private=secret.images[0].cpu(),
            answer=found.images[0].cpu(),
            phases=tuple(phase.images[0].cpu() for phase in found.phases),
        )


def _record(
    trial: Trial, observation: Observation, secret: Secret, found: Reconstruction
) -> Record:
    phases = []
    for phase in found.phases:
        values = _score(phase.images, secret, trial.metrics)
        phases.append(
            PhaseRecord(
                name=phase.name,
                distance=phase.distance,
                psnr=values.get("psnr"),
                ssim=values.get("ssim"),
                mse=values.get("mse"),
                stlpips=values.get("stlpips"),
                curve=[[_finite(value) for value in row] for row in phase.curve],
                restarts=list(phase.restarts),
                best_restart=phase.best_restart,
                dropped=list(phase.dropped),
                evaluations=phase.evaluations,
                seconds=phase.seconds,
            )
        )
    values = _score(found.images, secret, trial.metrics)
    pixels = (trial.image * 255).round().to(torch.uint8).numpy().tobytes()
    return Record(
        image=trial.name,
        image_sha256=hashlib.sha256(pixels).hexdigest(),
        attack=trial.attack.name,
        preset=trial.attack.preset,
        psnr=values.get("psnr"),
        ssim=values.get("ssim"),
        mse=values.get("mse"),
        stlpips=values.get("stlpips"),
        lpips=values.get("lpips"),
        distance=_finite(found.distance),
        phase=found.phase,
        seconds=found.seconds,
        evaluations=found.evaluations,
        seed=found.seed,
        interrupted=found.interrupted,
        dropped=list(found.dropped),
        label=trial.label,
        label_used=int(found.labels[0]),
        label_source=found.label_source,
        prior_label=None if found.prior_labels is None else int(found.prior_labels[0]),
        ledger=dict(observation.grants()),
        victim=dict(trial.victim) | {"mean": list(trial.model.mean), "std": list(trial.model.std)},
        settings=trial.attack.describe(),
        phases=phases,
        device=str(trial.model.device),
        threads=torch.get_num_threads(),
        peak_memory_bytes=_peak_memory(trial.model.device),
        versions={
            "gifd": version("gifd"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _score(images: Tensor, secret: Secret, metrics: Sequence[Metric]) -> dict[str, Number]:
    values = score(images, secret.images, metrics)
    return {name: _finite(sum(each) / len(each)) for name, each in values.items()}


def _finite(value: float) -> Number:
    return value if math.isfinite(value) else None


def _peak_memory(device: torch.device) -> int | None:
    """Bytes: of the accelerator's allocator, or of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
