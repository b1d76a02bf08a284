"""Journal: where a run stands after each phase, in a file, so that it can go on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from torch import Tensor

from gifd.errors import InputError, WeightsError, one_line
from gifd.files import is_file
from gifd.search.phase import Phase, PhaseResult
from gifd.search.spaces import Draw
from gifd.search.standing import Standing
from gifd.tensor_files import read_metadata, read_tensors, write_tensors

_NAME = "gifd.journal"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Stand:
    """A run between two phases.

    Args:
        done: number of phases that are complete.
        standing: the searches that continue.
        results: of the complete phases, for each observation.
        dropped: numbers of the restarts that became non-finite, for each observation.
    """

    done: int
    standing: Standing
    results: list[list[PhaseResult]]
    dropped: list[list[int]]


@final
@dataclass(frozen=True, kw_only=True)
class Journal:
    """A file that holds a run after its last complete phase.

    A run that finds it goes on from there and gives the same result as one that was never
    interrupted: the searches, what is kept of the phases, and the state of all random generators
    are in it. A complete run removes it.

    Args:
        path: of a .safetensors file.
        key: identifies the run's settings; a file of another key is refused.
    """

    path: Path
    key: str = ""

    def read(self, phases: Sequence[Phase], draws: Sequence[Draw], like: Tensor) -> Stand | None:
        """Where the run stood, its random generators set accordingly; None if there is no file.

        Args:
            phases: of the run.
            draws: whose generators are set.
            like: a tensor of the device.

        Raises:
            InputError: a damaged file, or that of another run.
        """
        if not is_file(self.path):
            return None
        try:
            tensors = {n: t.to(like.device) for n, t in read_tensors(self.path).items()}
            told = json.loads(read_metadata(self.path)[_NAME])
            names = [phase.name for phase in phases]
            if told["key"] != self.key or told["phases"] != names:
                raise InputError(
                    f"expected the journal of this run in '{one_line(self.path, 200)}', got that "
                    "of other settings: delete it, or give another file"
                )
            return self._stand(told, tensors, phases, draws)
        except (WeightsError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"expected a journal of gifd in '{one_line(self.path, 200)}', got: "
                f"{one_line(error)}: delete it"
            ) from None

    def write(self, stand: Stand, phases: Sequence[Phase], draws: Sequence[Draw]) -> None:
        """Keep it.

        Raises:
            InputError: the file cannot be written.
        """
        standing, names = stand.standing, [phase.name for phase in phases]
        tensors = {f"state/{name}": tensor for name, tensor in standing.state.items()}
        tensors |= {f"notes/{name}": tensor for name, tensor in standing.notes.items()}
        for name in ("labels", "numbers", "alive", "distance"):
            tensors[f"standing/{name}"] = getattr(standing, name)
        for n, draw in enumerate(draws):
            tensors[f"rng/{n}"] = draw.rng.get_state()
        results: list[list[dict[str, Any]]] = []
        for n, own in enumerate(stand.results):
            results.append([])
            for place, result in enumerate(own):
                tensors[f"images/{n}/{place}"] = result.images
                tensors[f"labels/{n}/{place}"] = result.labels
                results[-1].append(
                    {name: getattr(result, name) for name in _PLAIN}
                    | {"phase": names.index(result.name)}
                )
        told = {
            "key": self.key,
            "phases": names,
            "done": stand.done,
            "results": results,
            "dropped": stand.dropped,
        }
        write_tensors(tensors, {_NAME: json.dumps(told)}, self.path)

    def remove(self) -> None:
        """The run is complete."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _stand(
        self,
        told: dict[str, Any],
        tensors: dict[str, Tensor],
        phases: Sequence[Phase],
        draws: Sequence[Draw],
    ) -> Stand:
        def under(kind: str) -> dict[str, Tensor]:
            return {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}

        own = under("standing/")
        results = [
            [
                PhaseResult(
                    images=tensors[f"images/{n}/{place}"],
                    labels=tensors[f"labels/{n}/{place}"],
                    measure=phases[plain.pop("phase")].measure,
                    curve=tuple(map(tuple, plain.pop("curve"))),
                    restarts=tuple(plain.pop("restarts")),
                    dropped=tuple(plain.pop("dropped")),
                    **plain,
                )
                for place, plain in enumerate(each)
            ]
            for n, each in enumerate(told["results"])
        ]
        for n, draw in enumerate(draws):
            draw.rng.set_state(tensors[f"rng/{n}"].cpu())
        return Stand(
            done=told["done"],
            standing=Standing(
                space=phases[told["done"] - 1].space,
                state=under("state/"),
                notes=under("notes/"),
                labels=own["labels"],
                numbers=own["numbers"],
                alive=own["alive"],
                distance=own["distance"],
            ),
            results=results,
            dropped=told["dropped"],
        )


_PLAIN = [f.name for f in fields(PhaseResult) if f.name not in ("images", "labels", "measure")]
"""What of a phase's result is no tensor, and does not follow from the phase."""
