"""`gifd federate`: simulate a federation, and keep rounds of it to attack."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer

from gifd import catalog, terminal
from gifd.campaign.federated import Federated
from gifd.captures.folder import round_folder
from gifd.cli.choices import chosen_victim
from gifd.cli.options import (
    LAST_SEED,
    Device,
    Offline,
    Out,
    Protocol,
    Victim,
    VictimSeed,
    device_of,
    folder_at,
)
from gifd.errors import InputError
from gifd.federation.dealing import dealt, held_out
from gifd.federation.protocols import FedSGD
from gifd.federation.servers import Averaging, Descent
from gifd.federation.simulation import Simulation
from gifd.terminal import one_line_errors
from gifd.training import read_image_set


@one_line_errors
def federate(
    data: Annotated[Path, typer.Argument(help="Labelled images: a folder or zip.")],
    labels: Annotated[
        str, typer.Option(help="Regular expression whose group is the class in a path.")
    ] = "class([0-9]+)",
    victim: Victim = "convnet",
    victim_seed: VictimSeed = 0,
    size: Annotated[int, typer.Option(help="Side of the images.", min=16)] = 64,
    clients: Annotated[int, typer.Option(help="Clients of the federation.", min=1)] = 10,
    own: Annotated[
        float | None,
        typer.Option(
            help="Probability that an image goes to the client that owns its class. Default: one "
            "in --clients, which is IID."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of the federation.", min=1)] = 20,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images that a client draws of its own in a round. Default: all of them.", min=1
        ),
    ] = None,
    protocol: Protocol = "fedavg:lr=0.01,batch_size=16",
    server_lr: Annotated[
        float | None,
        typer.Option(
            help="The server takes a step of this rate along the mean gradient, as 'fedsgd' needs. "
            "Default: it averages the clients' weights."
        ),
    ] = None,
    record: Annotated[
        list[int] | None,
        typer.Option(help="Round to keep; may be repeated. Default: the last one."),
    ] = None,
    record_client: Annotated[
        list[int] | None,
        typer.Option(help="Client to keep, from 0; may be repeated. Default: 0."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the shares and the draws.", min=0, max=LAST_SEED)
    ] = 0,
    device: Device = "auto",
    offline: Offline = False,
    out: Out = None,
) -> None:
    """Train a model in a federation, and keep rounds of it for 'gifd invert'."""
    wanted, chosen = record or [rounds], record_client or [0]
    _check("--record", wanted, 1, rounds)
    _check("--record-client", chosen, 0, clients - 1)
    folder = folder_at(out)
    learnt = read_image_set(data, size=size, labels=labels)
    model, image_shape = chosen_victim(
        victim,
        classes=len(learnt.classes),
        shape=(None, size, size),
        seed=victim_seed,
        device=device_of(device),
        offline=offline,
    )
    if image_shape[0] != learnt.colours:
        learnt = read_image_set(data, size=size, channels=image_shape[0], labels=labels)
    assert learnt.labels is not None
    logits = model.classes(image_shape)
    if logits < len(learnt.classes):
        raise InputError(
            f"expected a victim of at least {len(learnt.classes)} classes, as the images have, "
            f"got {logits}"
        )
    if server_lr is None and isinstance(catalog.protocol(protocol, images=1), FedSGD):
        raise InputError(
            "expected --server-lr with clients that send gradients, got none: give the server's "
            "learning rate, or --protocol fedavg:lr=..."
        )
    share = 1 / clients if own is None else own
    rng = torch.Generator().manual_seed(seed)
    held, taught = held_out(len(learnt), rng)
    parts = dealt(learnt.labels[taught], clients=clients, own=share, rng=rng)
    simulation = Simulation(
        model=model,
        images=learnt.images,
        labels=learnt.labels,
        shares=[taught[part] for part in parts],
        protocol=lambda images: catalog.protocol(protocol, images=images),
        batch=batch_size,
        server=Averaging() if server_lr is None else Descent(server_lr),
        seed=seed,
    )
    kept = Federated(
        folder=folder,
        simulation=simulation,
        data=learnt,
        held=held,
        rounds=wanted,
        clients=chosen,
    )
    settings = {
        "data": learnt.source,
        "victim": victim,
        "victim_seed": victim_seed,
        "size": size,
        "clients": clients,
        "own": share,
        "rounds": rounds,
        "batch_size": batch_size,
        "protocol": protocol,
        "server_lr": server_lr,
        "seed": seed,
    }
    found: list[float] = []
    interrupted = False
    try:
        found.append(kept.begin(settings))
        with terminal.steps(f"federation of {clients}", rounds, what="accuracy") as told:
            for done in simulation.rounds(rounds):
                found.append(kept.add(done))
                told(done.number - 1, found[-1])
    except KeyboardInterrupt:
        interrupted = True
        terminal.say.print(f"interrupted: {max(len(found) - 1, 0)} rounds are over and kept")
    over = len(found) - 1
    rows = [(str(n), f"{found[n]:.3f}") for n in sorted({0, over, *wanted}) if 0 <= n <= over]
    terminal.table("", ("after round", "accuracy"), rows, console=terminal.say)
    last = max((number for number in wanted if number <= over), default=None)
    if last is not None:
        at = round_folder(folder, last)
        name = f"client-{chosen[0]:02d}"
        command = [
            *("gifd", "invert", at / f"{name}.safetensors"),
            *("--before", at / "before.safetensors", "--victim", victim),
            *("--classes", logits, "--shape", ",".join(map(str, image_shape))),
            *("--batch-size", len(simulation.held(last, chosen[0])), "--protocol", protocol),
            *("--private", at / name),
        ]
        terminal.tell(shlex.join(map(str, command)))
    if interrupted:
        raise typer.Exit(130)


def _check(option: str, numbers: list[int], first: int, last: int) -> None:
    wrong = [number for number in numbers if not first <= number <= last]
    if wrong:
        raise InputError(f"expected {option} from {first} to {last}, got {wrong[0]}")
