"""The errors a user can meet. Each carries one line: what was expected, what came, what to do."""

LONGEST = 600
"""Characters of an error's line; what others say in it is cut to far fewer by `one_line`."""


class GifdError(Exception):
    """Something outside the toolkit is wrong; the message is one line meant for its user.

    Names and texts of files are quoted in messages: line breaks and control characters are
    written out, and the middle of a message beyond `LONGEST` is left out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message, LONGEST))


class NotBegunError(GifdError):
    """Ctrl-C came before it was begun."""

    def __init__(self) -> None:
        super().__init__("interrupted before it was begun")


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
    """What another library says of an error, or a name in a file, as safe text for a terminal.

    On one line, control characters written out, and beyond `limit` characters without its middle.
    An exception that says nothing is named by its type.
    """
    text = str(message)
    if not text and isinstance(message, BaseException):
        text = type(message).__name__
    words = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    if len(line) <= limit:
        return line
    tail = limit // 3
    return f"{line[: limit - tail - 3]}...{line[len(line) - tail :]}"
