"""NVFlare: measure a client's reply before it is sent, and record updates on the server.

Needs the extra `nvflare`. In the job, with `measure()` and `batch(result, fl_ctx)` in `mine.py`:

    recipe.add_client_output_filter(LeakageFilter("mine:measure", "mine:batch"), tasks=["train"])
    recipe.add_server_input_filter(Recorded("updates"), tasks=["train"])

and later `gifd invert updates/round-000/client-site-1.safetensors --before
updates/round-000/before.safetensors`.

A filter is an entry of a JSON file and is built anew at each site, so it gets names of objects
instead of objects. Each of the two filters belongs into both chains, that of the task's data and
that of its result: the first knows the weights before. The job's functions above see to that; in a
JSON file list it under `task_data_filters` and `task_result_filters`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from gifd.captures.folder import write_before, write_returned
from gifd.catalog.resolver import resolve
from gifd.errors import InputError, one_line
from gifd.integrations.leak import LeakError, Measure

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.filter import ContentBlockedException, FilterChainType, FilterContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.fl_exception import UnsafeJobError
    from nvflare.apis.shareable import Shareable
    from nvflare.app_common.app_constant import AppConstants
    from nvflare.job_config.defs import FilterType
except ImportError:
    raise InputError("expected NVFlare, got none: pip install 'gifd[nvflare]'") from None

_BEFORE = "gifd.before"
_NAME = re.compile(r"\w[\w.-]*")


class _OfBothChains(DXOFilter):  # type: ignore[misc]
    """A filter of weights that sees what a task brings and what it returns."""

    def __init__(self) -> None:
        super().__init__([DataKind.WEIGHTS, DataKind.WEIGHT_DIFF], None)

    def add_to_fed_job(self, job: Any, ctx: Any, **kwargs: Any) -> None:
        """Put it into both chains of a job, which need not ship gifd's source."""
        job.set_app_packages([*job.job.app_packages, "gifd"])
        for kind in (FilterType.TASK_DATA, FilterType.TASK_RESULT):
            super().add_to_fed_job(job, ctx, **{**kwargs, "filter_type": kind})

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """What NVFlare calls in either chain."""
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            return self.received(dxo, shareable, fl_ctx)
        return self.returned(dxo, shareable, fl_ctx)

    def received(self, dxo: DXO, task: Shareable, fl_ctx: FLContext) -> DXO | None:
        """A task's data."""
        raise NotImplementedError

    def returned(self, dxo: DXO, result: Shareable, fl_ctx: FLContext) -> DXO | None:
        """A task's result."""
        raise NotImplementedError


@final
class LeakageFilter(_OfBothChains):
    """A client's filter: attacks the client's own reply before it is sent.

    It adds `gifd.integrations.leak.Leak.numbers` to the meta of the reply's DXO, which holds the
    weights or their change; other kinds pass unmeasured. It measures what it gets: filters that
    hide something come before it, and those that encrypt, behind.

    Args:
        measure: `module:object` or `file.py:object`, a `gifd.integrations.leak.Measure` or a
            function that makes one. Its `on_leak` means: 'report' adds the numbers only;
            'withhold' has NVFlare send the return code TASK_RESULT_FILTER_ERROR in place of the
            reply; 'raise' declares the job unsafe, upon which the server aborts it.
        batch: likewise, a function (result, fl_ctx) that returns the images (B, C, H, W) in [0, 1]
            and the labels (B,) of the reply's batch: then the worst case is known exactly. None: a
            simulated client is attacked in place of this one.

    Raises:
        InputError: no such objects.
    """

    def __init__(self, measure: str, batch: str | None = None) -> None:
        super().__init__()
        self.measure, self.batch = measure, batch
        self._measure: Measure = resolve(measure, {}, "measure", (Measure,)).made()
        self._batch = None if batch is None else _function(batch)

    def received(self, dxo: DXO, task: Shareable, fl_ctx: FLContext) -> None:
        """Keep the weights before."""
        keeper, _ = fl_ctx.get_prop(_BEFORE, (None, None))
        if keeper is self:
            raise InputError("expected one DXO of weights in a task, got several")
        if dxo.data_kind != DataKind.WEIGHTS:
            raise InputError(f"expected whole weights in a task, got {dxo.data_kind}")
        before = {name: tensor.clone() for name, tensor in _state(dxo).items()}
        fl_ctx.set_prop(_BEFORE, (self, before), private=True, sticky=False)

    def returned(self, dxo: DXO, result: Shareable, fl_ctx: FLContext) -> DXO:
        """Measure the weights after."""
        _, before = fl_ctx.get_prop(_BEFORE, (None, None))
        if before is None:
            raise InputError(
                "expected the task's weights, got none: list LeakageFilter under task_data_filters "
                "as well"
            )
        after = _state(dxo)
        if dxo.data_kind == DataKind.WEIGHT_DIFF:
            unknown = next((name for name in after if name not in before), None)
            if unknown is not None:
                raise InputError(f"expected the task's names in a WEIGHT_DIFF, got '{unknown}'")
            after = {name: before[name].double() + change for name, change in after.items()}
        own = None if self._batch is None else self._batch(result, fl_ctx)
        leak = self._measure(before, after, own)
        self.log_info(fl_ctx, f"gifd: {leak}")
        try:
            passes = self._measure.lets_pass(leak)
        except LeakError as error:
            raise UnsafeJobError(str(error)) from None
        if not passes:
            raise ContentBlockedException(f"gifd withheld it: {leak}")
        for name, number in leak.numbers.items():
            dxo.set_meta_prop(name, number)
        return dxo


@final
class Recorded(_OfBothChains):
    """A server's filter that keeps each round's weights and the clients' replies as files.

    `round-000/before.safetensors` holds what the clients received, and
    `round-000/client-<name>.safetensors` what each returned: its weights or their change. What a
    `LeakageFilter` says of a reply is in the file's metadata. A client that received other weights
    than the first of the round has a `before-<name>.safetensors`. Rounds count from 0, as NVFlare's
    do.

    Args:
        folder: of the files; if it is relative, in the folder of the job's results.

    Raises:
        InputError: a client's name that cannot be part of a file's, or a task without a round.
    """

    def __init__(self, folder: str = "updates") -> None:
        super().__init__()
        self.folder = folder
        self._lock = threading.Lock()
        self._sent: tuple[int, dict[str, Tensor]] | None = None

    def received(self, dxo: DXO, task: Shareable, fl_ctx: FLContext) -> None:
        """Keep the weights before, once a round where all clients get the same."""
        number, state = _round(task), _state(dxo)
        with self._lock:
            sent = self._sent
            if sent is None or sent[0] != number:
                write_before(state, self._path(fl_ctx), number)
                self._sent = number, state
            elif not _equal(sent[1], state):
                write_before(state, self._path(fl_ctx), number, client=_client(fl_ctx))

    def returned(self, dxo: DXO, result: Shareable, fl_ctx: FLContext) -> None:
        """Keep a reply."""
        found = {k: v for k, v in dxo.get_meta_props().items() if k.startswith("gifd-")}
        write_returned(
            _state(dxo), self._path(fl_ctx), _round(result), _client(fl_ctx), numbers=found
        )

    def _path(self, fl_ctx: FLContext) -> Path:
        """The folder; NVFlare's results of the job, if it is relative to them."""
        folder = Path(self.folder)
        if folder.is_absolute():
            return folder
        workspace = fl_ctx.get_engine().get_workspace()
        return Path(workspace.get_result_root(fl_ctx.get_job_id())) / folder


def _function(text: str) -> Callable[[Shareable, FLContext], tuple[Tensor, Tensor]]:
    return cast(
        "Callable[[Shareable, FLContext], tuple[Tensor, Tensor]]",
        resolve(text, {}, "batch", (Callable,)).made(),  # type: ignore[arg-type]
    )


def _state(dxo: DXO) -> dict[str, Tensor]:
    """The tensors of a DXO, by name.

    Raises:
        InputError: they are encrypted, or not arrays.
    """
    processed = dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM)
    if processed:
        raise InputError(
            f"expected plain weights, got some processed by {processed}: put gifd's filter on the "
            "other side of that filter"
        )
    try:
        return {name: torch.as_tensor(array) for name, array in dxo.data.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected arrays of numbers in a DXO, got: {one_line(error)}") from None


def _round(shareable: Shareable) -> int:
    """The number of a task's round: in its header, or the cookie that comes back with the reply."""
    found = shareable.get_header(AppConstants.CURRENT_ROUND)
    if found is None:
        found = shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND)
    if found is None:
        raise InputError("expected the number of the round in a task, got none")
    return int(found)


def _client(fl_ctx: FLContext) -> str:
    """The name of the client at the other end, as part of a file's name."""
    name = str(fl_ctx.get_peer_context().get_identity_name())
    if not _NAME.fullmatch(name):
        raise InputError(f"expected a plain name of a client, got '{one_line(name, 40)}'")
    return name


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
