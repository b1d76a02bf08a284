"""The errors a user can meet. Each carries one line: what was expected, what came, what to do."""

import zipfile
import zlib

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for an archive that is damaged, encrypted or packed in an unknown way."""


class GifdError(Exception):
    """Something outside the toolkit is wrong; the message is one line meant for its user."""


class InputError(GifdError):
    """An image, a label, an option or a file that cannot be used."""


class UpdateError(GifdError):
    """An update that does not belong to the model: names, shapes or values are off."""


class ModelError(GifdError):
    """A model that cannot be attacked, or whose training step cannot be replayed."""


class WeightsError(GifdError):
    """A weights file that is missing, unreadable or not the one that was named."""


def expect(value: object, kind: type, wanted: str) -> None:
    """Refuse a value of another type where a newcomer is likely to hand one over.

    Raises:
        InputError: says what was wanted and what came.
    """
    if not isinstance(value, kind):
        raise InputError(f"expected {wanted}, got {one_line(repr(value), 40)}")


def one_line(message: object, limit: int = 160) -> str:
    """What another library says of an error, on one line and cut to `limit` characters."""
    line = " ".join(str(message).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
