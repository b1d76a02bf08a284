"""Flower: a simulated federation run by Flower's apps, strategy and engine.

Needs the extra `flower`; Flower's simulation engine needs `pip install 'flwr[simulation]'`.

    final = simulate(simulation, 20, kept.add)

gives the numbers of `simulation.rounds(20)` to rounding, since every draw depends on the seed, the
round and the client alone. For a federation of one's own, `client_app(simulation)` and
`server_app(simulation, rounds, told)` are ordinary Flower apps.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from gifd.captures import at_weights, from_state_dicts
from gifd.errors import InputError
from gifd.federation.servers import Averaging, Reply
from gifd.federation.simulation import Round, Simulation, Work
from gifd.model import Model

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:
    raise InputError("expected Flower, got none: pip install 'gifd[flower]'") from None

Told = Callable[[Round], object]
"""Called with each round when it is over."""

NUMBER = "partition-id"
"""Under this name Flower's engine tells a node which client it is."""


def simulate(
    simulation: Simulation,
    rounds: int,
    told: Told = lambda done: None,
    *,
    engine: Literal["ray", "process"] | None = None,
) -> Model:
    """Run a simulated federation in Flower, and return the global model at its end.

    Args:
        simulation: its clients, and what they do; its server averages.
        rounds: how many, at least 1.
        told: see `Told`.
        engine: 'ray' is Flower's own engine; 'process' runs the same apps one after the other in
            this process. By default Flower's, if Ray is installed.

    Raises:
        InputError: Ray is asked for and not installed, a server that does not average, no round,
            or a client that failed.
    """
    installed = importlib.util.find_spec("ray") is not None
    if engine == "ray" and not installed:
        raise InputError(
            "expected Ray for Flower's engine, got none: pip install 'flwr[simulation]'"
        )
    last: list[Model] = []

    def kept(done: Round) -> None:
        told(done)
        last[:] = [done.after]

    server, client = server_app(simulation, rounds, kept), client_app(simulation)
    if installed and engine != "process":
        from flwr.simulation import run_simulation

        alone: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server, client, len(simulation.shares), backend_config=alone)
    else:
        with _identity():
            server(InProcess(client, len(simulation.shares)), _context(0))
    return last[0]


def client_app(simulation: Simulation) -> ClientApp:
    """The app of all clients: `Work.done` at the weights of the message."""
    app = ClientApp()
    app.train()(_Train(simulation=simulation))
    return app


@dataclass(frozen=True, kw_only=True, eq=False)
class _Train:
    """A client's training, as a value that Ray can send to its workers."""

    simulation: Simulation

    def __call__(self, message: Message, context: Context) -> Message:
        client = int(context.node_config[NUMBER])
        number = int(message.content.config_records["config"]["server-round"])
        model = _at(message.content.array_records["arrays"], self.simulation.model)
        reply = self.simulation.work(number, client).done(model)
        content = RecordDict(
            {
                "arrays": ArrayRecord(self.simulation.server.returned(model, reply)),
                "metrics": MetricRecord({"num-examples": reply.images}),
                "client": ConfigRecord({"number": client}),
            }
        )
        return Message(content=content, reply_to=message)


def server_app(simulation: Simulation, rounds: int, told: Told) -> ServerApp:
    """The app of the server: Flower's FedAvg, weighted by the clients' numbers of images.

    Raises:
        InputError: a server that does not average, or no round.
    """
    if not isinstance(simulation.server, Averaging):
        raise InputError(
            f"expected a server that averages, as Flower's FedAvg does, got {simulation.server}: "
            "simulate it without Flower"
        )
    if rounds < 1:
        raise InputError(f"expected at least 1 round, got {rounds}")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        first = ArrayRecord(simulation.model.state())
        _Averaged(simulation, told).start(grid, initial_arrays=first, num_rounds=rounds)

    return app


class _Averaged(FedAvg):
    """Flower's FedAvg over all clients, which makes a `Round` of the messages of each round."""

    def __init__(self, simulation: Simulation, told: Told) -> None:
        every = len(simulation.shares)
        super().__init__(fraction_evaluate=0.0, min_train_nodes=every, min_available_nodes=every)
        self.simulation, self.told = simulation, told
        self.before = simulation.model

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's, after reading the weights."""
        self.before = _at(arrays, self.simulation.model)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's, of the replies in the clients' order."""
        received = list(replies)
        failed = [reply.error.reason for reply in received if reply.has_error()]
        every = len(self.simulation.shares)
        if failed or len(received) < every:
            reason = failed[0] if failed else "the others are missing"
            raise InputError(
                f"expected replies of {every} clients in round {server_round}, got "
                f"{len(received) - len(failed)}: {reason}"
            )
        received.sort(key=lambda reply: int(reply.content.config_records["client"]["number"]))
        arrays, metrics = super().aggregate_train(server_round, received)
        works = [self.simulation.work(server_round, client) for client in range(every)]
        self.told(
            Round(
                number=server_round,
                before=self.before,
                works=works,
                replies=[
                    _reply(self.before, reply.content.array_records["arrays"], work)
                    for reply, work in zip(received, works, strict=True)
                ],
                after=_at(arrays, self.simulation.model),
            )
        )
        return arrays, metrics


@final
class InProcess(Grid):
    """Nodes in this process, one after the other, each a client with the same app.

    Args:
        client: the app.
        nodes: how many; they are numbered from 1.
    """

    def __init__(self, client: ClientApp, nodes: int) -> None:
        self.client, self.nodes = client, nodes

    def get_node_ids(self) -> Iterable[int]:
        """1, 2, ..."""
        return range(1, self.nodes + 1)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """The replies of the nodes, in the messages' order."""
        return [self.client(each, _context(each.metadata.dst_node_id)) for each in messages]

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """There is no record of it."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Strategies make their messages themselves."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Nodes answer at once: see `send_and_receive`."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Nodes answer at once: see `send_and_receive`."""
        raise NotImplementedError


def _context(node: int) -> Context:
    config: Any = {NUMBER: node - 1}
    return Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})


@contextmanager
def _identity() -> Iterator[None]:
    """What a running server app has; Flower's engine sets it itself."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    try:
        for name in names:
            setattr(TaskIdentity, name, 1)
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def _at(arrays: ArrayRecord, model: Model) -> Model:
    """The model at these weights and buffers; averages of whole numbers are rounded."""
    wanted = model.module.state_dict()
    given = arrays.to_torch_state_dict()
    state = {
        name: tensor if wanted[name].is_floating_point() else tensor.round()
        for name, tensor in given.items()
    }
    return at_weights(state, model)[0]


def _reply(before: Model, arrays: ArrayRecord, work: Work) -> Reply:
    """A client's reply, from the state that it returned."""
    state: Mapping[str, Tensor] = arrays.to_torch_state_dict()
    buffers = {
        name: state[name].to(own.device)
        for name, own in before.buffers.items()
        if name in state and not torch.equal(state[name].to(own.device), own)
    }
    return Reply(
        update=from_state_dicts(before.state(), state, before).update,
        buffers=buffers,
        images=len(work.pixels),
        protocol=work.protocol,
    )
