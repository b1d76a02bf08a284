"""Federated: what is kept of a simulated federation, in a folder from which it is attacked."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from gifd.captures.folder import round_folder, write_before, write_returned
from gifd.errors import InputError, one_line
from gifd.federation.simulation import Round, Simulation, accuracy
from gifd.files import is_file
from gifd.images import write_image
from gifd.model import Model
from gifd.training import ImageSet

ROWS, SETTINGS = "rounds.jsonl", "federation.json"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Federated:
    """The folder of a simulated federation.

    - `federation.json`: the settings, and each client's number of images of each class.
    - `rounds.jsonl`: round and accuracy of the global model after it, in evaluation mode, on the
      held-out images; round 0 is the first model. A line is written when its round is over.
    - `round-005/before.safetensors`: the global model that clients received, of chosen rounds.
    - `round-005/client-03.safetensors`: what a chosen client returned.
    - `round-005/client-03/`: its images in that round, in their order, as PNG files.
    - `round-005/client-03.json`: their names in the data, and their classes.

    Args:
        folder: of the files.
        simulation: the federation.
        data: its images, with their names.
        held: the numbers of the held-out images.
        rounds: those to keep, from 1.
        clients: those to keep, from 0.
    """

    folder: Path
    simulation: Simulation
    data: ImageSet
    held: Int[Tensor, "H"]
    rounds: Collection[int]
    clients: Collection[int]

    def begin(self, settings: Mapping[str, object]) -> float:
        """Write the settings and the accuracy of the first model, and return the latter.

        Raises:
            InputError: the folder holds a federation, or cannot be written to.
        """
        if is_file(self.folder / ROWS):
            raise InputError(
                f"expected a folder without a federation, got '{one_line(self.folder, 200)}': "
                "name another --out"
            )
        labels, count = self.simulation.labels, len(self.data.classes)
        shares = [
            torch.bincount(labels[own], minlength=count).tolist() for own in self.simulation.shares
        ]
        told = {**settings, "classes": self.data.classes, "shares": shares}
        self._write(SETTINGS, json.dumps(told, indent=1) + "\n")
        return self._row(0, self.simulation.model)

    def add(self, done: Round) -> float:
        """Keep what was chosen of a round, and return the accuracy after it.

        Raises:
            InputError: the weights are no longer finite, or a file cannot be written.
        """
        if not all(bool(torch.isfinite(t).all()) for t in done.after.parameters.values()):
            raise InputError(
                f"expected finite weights, got others in round {done.number}: lower the learning "
                "rate"
            )
        if done.number in self.rounds:
            for client in self.clients:
                self._keep(done, client)
            write_before(done.before.state(), self.folder, done.number)
        return self._row(done.number, done.after)

    def _keep(self, done: Round, client: int) -> None:
        """A client's images, and what it returned."""
        name, work = f"{client:02d}", done.works[client]
        held = self.simulation.held(done.number, client).tolist()
        names = [self.data.names[i] if self.data.names else str(i) for i in held]
        private = round_folder(self.folder, done.number) / f"client-{name}"
        width = len(str(len(held)))
        images, _ = work.on("cpu")
        for place, (image, file) in enumerate(zip(images, names, strict=True)):
            write_image(image, private / f"{place:0{width}d}-{Path(file).stem}.png")
        told = {
            "round": done.number,
            "client": client,
            "images": names,
            "labels": work.labels.tolist(),
            "protocol": repr(work.protocol),
        }
        place_of = private.relative_to(self.folder).with_suffix(".json")
        self._write(place_of.as_posix(), json.dumps(told, indent=1) + "\n")
        returned = self.simulation.server.returned(done.before, done.replies[client])
        write_returned(returned, self.folder, done.number, name)

    def _row(self, number: int, model: Model) -> float:
        images, labels = self.simulation.images[self.held], self.simulation.labels[self.held]
        found = accuracy(model.evaluating(), images, labels)
        known = None if math.isnan(found) else found
        self._write(ROWS, json.dumps({"round": number, "accuracy": known}) + "\n", "a")
        return found

    def _write(self, name: str, text: str, how: str = "w") -> None:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(how, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(
                f"expected to write '{one_line(path, 200)}', got: {one_line(error)}"
            ) from None
