"""The errors for users. Each has one line: what was expected, what it got, what to do."""

LONGEST = 600
"""Maximum length of an error's line; quoted text in it is cut shorter by `one_line`."""

GRANT_LABELS, NAME_ATTACKER, NAME_CLIENT, NAME_HIDDEN = (
    "grant the labels",
    "name the ledger's attacker",
    "name the client",
    "name it as hidden",
)
"""Remedies in errors for which commands have options (`gifd.terminal.in_shell`)."""


class GifdError(Exception):
    """Something outside the toolkit is wrong; the message is one line for its user.

    Line breaks and control characters are escaped, since messages quote names and texts of files.
    The middle of a message longer than `LONGEST` is cut.
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
    """An update that does not fit the model: wrong names, shapes or values."""


class ModelError(GifdError):
    """A model that cannot be attacked, or whose training step cannot be replayed."""


class UnexplainedError(GifdError):
    """An update that does not follow from what the attacker believes. It is no proof of safety."""


class WeightsError(GifdError):
    """A weights file that is missing, unreadable or not the expected one."""


def expect(value: object, kind: type, wanted: str) -> None:
    """Check a value's type where users are likely to pass another one.

    Raises:
        InputError: the type differs.
    """
    if not isinstance(value, kind):
        raise InputError(f"expected {wanted}, got {one_line(repr(value), 40)}")


def one_line(message: object, limit: int = 160) -> str:
    """Text from elsewhere, e.g. another library's error, made safe for a terminal.

    One line, with control characters escaped and the middle cut beyond `limit` characters. An
    exception without a message is named by its type.
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
