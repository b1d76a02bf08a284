"""Flower: measure a client's reply before it is sent, and record updates on the server.

Needs the extra `flower`. On the client:

    app = ClientApp(mods=[LeakageMod(model, (3, 64, 64), FedAvg(steps=1, lr=0.1), batch=my_batch)])

On the server:

    result = Recorded(FedAvg(), "updates").start(grid, initial_arrays=arrays)

and later `gifd invert updates/round-001/client-5.safetensors --before
updates/round-001/before.safetensors`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacker.observe import observe
from gifd.attacks import Attack, peel
from gifd.audit import Fit, fit
from gifd.audit.stand_ins import stand_ins
from gifd.captures import at_weights, from_state_dicts
from gifd.captures.folder import write_before, write_returned
from gifd.errors import GifdError, InputError, UnexplainedError
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.metrics import PSNR, score
from gifd.model import Model

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise InputError("expected Flower, got none: pip install 'gifd[flower]'") from None

_log = logging.getLogger("gifd")

ON_LEAK = ("report", "withhold", "raise")
WITHHELD = 451
"""Code of the error that takes a withheld reply's place."""


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


@final
class LeakageMod:
    """A client mod: attacks the client's own reply before it is sent.

    It adds to the metrics of a training reply:

    - `gifd-leak`: 1 if the reconstruction reaches the threshold, else 0
    - `gifd-psnr`: its PSNR in dB, NaN if the attack could not be made
    - `gifd-explained`: 1 if the assumptions explain the update (`gifd.audit.fit`), else 0. If not,
      a 0 in `gifd-leak` means nothing

    Args:
        model: the network of the federation, in the mode in which clients train; its weights are
            replaced by those of each message.
        image_shape: (C, H, W) of the client's images.
        protocol: what the client computes.
        batch: returns the images (B, C, H, W) in [0, 1] and the labels (B,) of the reply's batch:
            then the worst case is known exactly. None: a client of the same protocol with
            `batch_size` images of random shapes is simulated and attacked at the same weights.
        batch_size: of the simulated client.
        attack: by default `peel`.
        threshold: PSNR in dB from which on an image counts as given away.
        on_leak: 'report' adds metrics only; 'withhold' sends an error in place of the reply;
            'raise' ends the client with a `LeakError`.
        seed: of the attack and the stand-ins.

    Raises:
        InputError: a threshold or `on_leak` that is not allowed.
    """

    def __init__(
        self,
        model: Model,
        image_shape: tuple[int, int, int],
        protocol: Protocol,
        *,
        batch: Callable[[Message, Context], tuple[Tensor, Tensor]] | None = None,
        batch_size: int = 1,
        attack: Attack | None = None,
        threshold: float = 20.0,
        on_leak: str = "report",
        seed: int = 0,
    ) -> None:
        if on_leak not in ON_LEAK:
            raise InputError(f"expected on_leak as {', '.join(ON_LEAK)}, got '{on_leak}'")
        if not math.isfinite(threshold):
            raise InputError(f"expected a finite threshold in dB, got {threshold}")
        self.model, self.image_shape, self.protocol = model, image_shape, protocol
        self.batch, self.batch_size = batch, batch_size
        self.attack = peel() if attack is None else attack
        self.threshold, self.on_leak, self.seed = threshold, on_leak, seed

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Run the client, and measure its reply if it has trained."""
        before = _state(message) if message.metadata.message_type.startswith("train") else None
        reply = call_next(message, context)
        if before is None or reply.has_error():
            return reply
        leak = self.measured(before, _state(reply), message, context)
        _log.info("gifd: %s", leak)
        if leak.exposed and self.on_leak == "raise":
            raise LeakError(f"the update was not sent: {leak}")
        if leak.exposed and self.on_leak == "withhold":
            return Message(
                Error(code=WITHHELD, reason=f"gifd withheld it: {leak}"), reply_to=message
            )
        found: dict[str, int | float | list[int] | list[float]] = {
            "gifd-leak": float(leak.exposed),
            "gifd-psnr": math.nan if leak.psnr is None else leak.psnr,
            "gifd-explained": float(leak.fit.explained),
        }
        records = list(reply.content.metric_records.values())
        if records:
            records[0].update(found)
        else:
            reply.content["gifd"] = MetricRecord(found)
        return reply

    def measured(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        message: Message,
        context: Context,
    ) -> Leak:
        """What the change from `before` to `after` gives away."""
        model, _ = at_weights(before, self.model)
        update = from_state_dicts(before, after, model).update
        own = None if self.batch is None else self.batch(message, context)
        if own is None:
            rng = torch.Generator().manual_seed(self.seed)
            images = stand_ins(self.batch_size, self.image_shape, rng)
            classes = model.classes(self.image_shape)
            labels = torch.randint(classes, (self.batch_size,), generator=rng)
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

    def _reconstructed(self, upload: Upload, images: Float[Tensor, "B C H W"]) -> float | None:
        """The best PSNR of any image; an exact one counts as 100 dB."""
        try:
            found = self.attack(observe(upload), seed=self.seed)
        except UnexplainedError:
            return None
        values = score(found.images, images, (PSNR(),))["psnr"]
        return min(max(values), 100.0)


@final
class Recorded(Strategy):
    """A strategy that keeps each round's weights and the clients' replies as files.

    `round-001/before.safetensors` holds what the clients received, and
    `round-001/client-<node>.safetensors` what each returned, for `gifd invert`.

    Args:
        strategy: does everything else.
        folder: of the files.
    """

    def __init__(self, strategy: Strategy, folder: str | Path) -> None:
        self.strategy, self.folder = strategy, Path(folder)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's, after keeping the weights."""
        write_before(arrays.to_torch_state_dict(), self.folder, server_round)
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's, after keeping the replies."""
        kept = list(replies)
        for reply in kept:
            if not reply.has_error():
                node = str(reply.metadata.src_node_id)
                write_returned(_state(reply), self.folder, server_round, node)
        return self.strategy.aggregate_train(server_round, kept)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The strategy's."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """The strategy's."""
        self.strategy.summary()


def _state(message: Message) -> dict[str, Tensor]:
    """The only array record of a message, by name.

    Raises:
        InputError: none, or several.
    """
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise InputError(f"expected one record of arrays in a message, got {len(records)}")
    return dict(records[0].to_torch_state_dict())
