"""Leak: what a change of weights gives away, in any framework of federated learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.attacker.observe import observe
from gifd.attacks import Attack, peel
from gifd.audit import Fit, fit
from gifd.audit.stand_ins import stand_ins
from gifd.campaign.part import EXACT
from gifd.captures import at_weights, from_state_dicts
from gifd.errors import GifdError, InputError, UnexplainedError
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.metrics import PSNR, score
from gifd.model import Model

ON_LEAK = ("report", "withhold", "raise")


class LeakError(GifdError):
    """A client's update gives its images away, and `on_leak` is 'raise'."""


@final
@dataclass(frozen=True, kw_only=True)
class Leak:
    """What an update gives away.

    Args:
        psnr: of the reconstruction, in dB; None if the attack could not be made.
        exposed: whether that is at least the threshold.
        fit: whether the assumptions about the client explain the update.
        on_stand_ins: whether the images were stand-ins, and not the client's own.
    """

    psnr: float | None
    exposed: bool
    fit: Fit
    on_stand_ins: bool

    def __str__(self) -> str:
        whose = "images of random shapes" if self.on_stand_ins else "the client's images"
        if self.psnr is None:
            said = "the attack refuses this update, which is no proof of safety"
        else:
            said = f"{whose} are reconstructed at {self.psnr:.1f} dB"
        return f"{said}; {self.fit}"

    @property
    def numbers(self) -> dict[str, float]:
        """What a client reports of it.

        - `gifd-leak`: 1 if the reconstruction reaches the threshold, else 0
        - `gifd-psnr`: its PSNR in dB, NaN if the attack could not be made
        - `gifd-explained`: 1 if the assumptions explain the update (`gifd.audit.fit`), else 0. If
          not, a 0 in `gifd-leak` means nothing
        """
        return {
            "gifd-leak": float(self.exposed),
            "gifd-psnr": math.nan if self.psnr is None else self.psnr,
            "gifd-explained": float(self.fit.explained),
        }


@final
@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a client measures what its own reply gives away.

    Args:
        model: the network of the federation, in the mode in which clients train; its weights are
            replaced by those that the client received.
        image_shape: (C, H, W) of the client's images.
        protocol: what the client computes.
        attack: by default `peel`.
        threshold: PSNR in dB from which on an image counts as given away.
        on_leak: 'report' adds numbers to the reply; 'withhold' sends none in place of it; 'raise'
            ends the training with a `LeakError`.
        batch_size: of the client that is simulated where its own images are not given.
        seed: of the attack and the stand-ins.

    Raises:
        InputError: a threshold or `on_leak` that is not allowed.
    """

    model: Model
    image_shape: tuple[int, int, int]
    protocol: Protocol
    attack: Attack = field(default_factory=peel)
    threshold: float = 20.0
    on_leak: str = "report"
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on_leak not in ON_LEAK:
            raise InputError(f"expected on_leak as {', '.join(ON_LEAK)}, got '{self.on_leak}'")
        if not math.isfinite(self.threshold):
            raise InputError(f"expected a finite threshold in dB, got {self.threshold}")

    def __call__(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        own: tuple[Float[Tensor, "B C H W"], Shaped[Tensor, "B *T"]] | None = None,
    ) -> Leak:
        """What the change of weights from `before` to `after` gives away.

        Args:
            before: the state dict that the client received.
            after: the one that it returns.
            own: the images in [0, 1] and the labels of the client's batch: then the worst case is
                known exactly. None: a client of the same protocol with images of random shapes is
                simulated and attacked at the same weights.

        Raises:
            UpdateError: the weights do not fit the model.
        """
        model, _ = at_weights(before, self.model)
        update = from_state_dicts(before, after, model).update
        if own is None:
            rng = torch.Generator().manual_seed(self.seed)
            images = stand_ins(self.batch_size, self.image_shape, rng)
            like = next(iter(model.parameters.values()))
            labels = model.task(self.image_shape).drawn(self.batch_size, rng, like)
        else:
            images, labels = own
        images, labels = images.to(model.device), labels.to(model.device)
        upload = Upload(
            update=update,
            model=model,
            protocol=self.protocol,
            image_shape=self.image_shape,
            batch_size=len(images),
            labels=None if own is None else labels,
        )
        fitted = fit(observe(upload), seed=self.seed)
        if own is None:
            simulated = upload.replay(images, labels).detach()
            upload = replace(upload, update=simulated, labels=labels)
        psnr = self._reconstructed(upload, images)
        return Leak(
            psnr=psnr,
            exposed=psnr is not None and psnr >= self.threshold,
            fit=fitted,
            on_stand_ins=own is None,
        )

    def lets_pass(self, leak: Leak) -> bool:
        """Whether a reply that gives this away is sent.

        Raises:
            LeakError: it is not, and `on_leak` is 'raise'.
        """
        if leak.exposed and self.on_leak == "raise":
            raise LeakError(f"the update was not sent: {leak}")
        return not leak.exposed or self.on_leak == "report"

    def _reconstructed(self, upload: Upload, images: Float[Tensor, "B C H W"]) -> float | None:
        """The best PSNR of any image; an exact one counts as 100 dB."""
        try:
            found = self.attack(observe(upload), seed=self.seed)
        except UnexplainedError:
            return None
        values = score(found.images, images, (PSNR(),))["psnr"]
        return min(max(values), EXACT)
