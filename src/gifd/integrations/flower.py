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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

from torch import Tensor

from gifd.attacks import Attack, peel
from gifd.captures.folder import write_before, write_returned
from gifd.errors import InputError
from gifd.federation.protocols import Protocol
from gifd.integrations.leak import Leak, LeakError, Measure
from gifd.model import Model

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise InputError("expected Flower, got none: pip install 'gifd[flower]'") from None

_log = logging.getLogger("gifd")

__all__ = ["WITHHELD", "Leak", "LeakError", "LeakageMod", "Recorded"]

WITHHELD = 451
"""Code of the error that takes a withheld reply's place."""


@final
class LeakageMod:
    """A client mod: attacks the client's own reply before it is sent.

    It adds `Leak.numbers` to the metrics of a training reply.

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
        self.measure = Measure(
            model=model,
            image_shape=image_shape,
            protocol=protocol,
            attack=peel() if attack is None else attack,
            threshold=threshold,
            on_leak=on_leak,
            batch_size=batch_size,
            seed=seed,
        )
        self.batch = batch

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Run the client, and measure its reply if it has trained."""
        before = _state(message) if message.metadata.message_type.startswith("train") else None
        reply = call_next(message, context)
        if before is None or reply.has_error():
            return reply
        own = None if self.batch is None else self.batch(message, context)
        leak = self.measure(before, _state(reply), own)
        _log.info("gifd: %s", leak)
        if not self.measure.lets_pass(leak):
            return Message(
                Error(code=WITHHELD, reason=f"gifd withheld it: {leak}"), reply_to=message
            )
        found: dict[str, int | float | list[int] | list[float]] = {**leak.numbers}
        records = list(reply.content.metric_records.values())
        if records:
            records[0].update(found)
        else:
            reply.content["gifd"] = MetricRecord(found)
        return reply


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
