"""Store: a folder of finished trials, each a folder with record.json and pictures.

For a batch the pictures are sheets of its images; the single images are numbered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gifd.campaign.record import Outcome, Record
from gifd.errors import InputError, one_line
from gifd.images import grid, write_image

RECORD, PRIVATE, ANSWER = "record.json", "private.png", "reconstruction.png"


@dataclass(frozen=True)
class Stored:
    """One trial on disk."""

    folder: Path
    record: Record

    @property
    def private(self) -> Path:
        """The private image; there is none if it is unknown (`Record.truth`)."""
        return self.folder / PRIVATE

    @property
    def answer(self) -> Path:
        """The reconstruction."""
        return self.folder / ANSWER

    @property
    def phases(self) -> list[Path]:
        """The best image of every phase, in order."""
        return sorted(self.folder.glob("phase-*.png"))


class Store:
    """A folder to which trials are added, and from which reports are made.

    Raises:
        InputError: the folder cannot be created or written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def add(self, outcome: Outcome) -> Stored:
        """Write one trial; its record last, so that a folder with a record is complete."""
        record = outcome.record
        stem = _plain(Path(record.image).stem) or "image"
        name = f"{stem}-{_plain(record.attack)}-{record.preset}"
        try:
            folder = self._fresh(name)
            pictures = {PRIVATE: outcome.private, ANSWER: outcome.answer}
            for file, images in pictures.items():
                if images is None:
                    continue
                write_image(grid(images), folder / file)
                for number, image in enumerate(images if len(images) > 1 else (), start=1):
                    write_image(image, folder / file.replace(".", f"-{number:02d}."))
            for number, (phase, images) in enumerate(
                zip(record.phases, outcome.phases, strict=True), start=1
            ):
                name = _plain(phase.name)
                write_image(grid(images), folder / f"phase-{number:02d}-{name}.png")
            text = record.model_dump_json(indent=2)
            (folder / RECORD).write_text(text + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(
                f"expected to write to '{self.folder}', got: {one_line(error)}"
            ) from None
        return Stored(folder, record)

    def __iter__(self) -> Iterator[Stored]:
        """The trials in the order of addition.

        Raises:
            InputError: a record that this version cannot read.
        """
        for path in sorted(self.folder.glob(f"trials/*/{RECORD}")):
            try:
                record = Record.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:  # ValueError: pydantic's, or invalid UTF-8
                reason = one_line(error)
                raise InputError(f"expected a record of gifd at '{path}', got: {reason}") from None
            yield Stored(path.parent, record)

    def _fresh(self, name: str) -> Path:
        trials = self.folder / "trials"
        trials.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name[:4]) for p in trials.iterdir() if p.name[:4].isdigit()]
        folder = trials / f"{max(taken, default=0) + 1:04d}-{name}"
        folder.mkdir()
        return folder


def _plain(text: str) -> str:
    """Text as part of a file name: the user's own attack can have any name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)
