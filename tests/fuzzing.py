"""Fuzzing: nearly valid files, and the allowed results of reading them.

A strategy for each container draws a file from a good one: bytes are turned, cut out, doubled,
overwritten with extreme numbers; the parts of a PNG, a zip, a JSON text or a pickle are changed
under checksums that still fit.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, MappingProxyType
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gifd.errors import GifdError

EXAMPLES = int(os.environ.get("GIFD_FUZZ_EXAMPLES", "0"))
"""Of each reader; 0 takes the few, always the same, that a test run has time for."""

SECONDS, MEGABYTES, LONGEST = 20, 700, 320
_RUNS_CODE = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
)


# -- what may come of a file ---------------------------------------------------------------


class _TooLongError(BaseException):
    """Not an `Exception`, which a reader could treat as an error in the file."""


_armed = False
_caught: list[str] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _armed and event in _RUNS_CODE:
        _caught.append(event)


sys.addaudithook(_audit)


@contextmanager
def _within_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError(f"no end after {SECONDS} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_megabytes() -> float:
    """The peak memory of this process so far."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def outcome(read: Callable[[], object], paths: Sequence[object] = ()) -> GifdError | None:
    """Read a file: this must return a value or raise one short line, and run no code from it.

    Args:
        read: reads the file.
        paths: whose length the line may have beside its own.

    Returns:
        the error, or None where there was a value.
    """
    global _armed
    _caught.clear()
    before = peak_megabytes()
    error: GifdError | None = None
    _armed = True
    try:
        with _within_time(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            read()
    except GifdError as told:
        error = told
    finally:
        _armed = False
    assert not [w for w in warned if w.category not in (DeprecationWarning, FutureWarning)]
    assert not _caught, f"reading the file led to {_caught}"
    assert peak_megabytes() - before < MEGABYTES
    if error is not None:
        text = str(error)
        assert text.isprintable()
        for path in paths:
            text = text.replace(str(path), "")
        assert len(text) <= LONGEST, text
    return error


# -- bytes -----------------------------------------------------------------------------------

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1]


@st.composite
def edited(draw: DrawFn, seed: bytes, most: int = 4) -> bytes:
    """The bytes after 1 to `most` edits, more often at the ends than inside."""
    content = bytearray(seed)
    for _ in range(draw(st.integers(1, most))):
        size = len(content)
        if not size:
            break
        last = size - 1
        at = draw(
            st.one_of(
                st.integers(0, last),
                st.integers(0, min(last, 127)),
                st.integers(max(0, last - 127), last),
            )
        )
        length = draw(st.sampled_from([1, 2, 4, 8, 16, 64]))
        edit = draw(st.sampled_from(["flip", "number", "cut", "insert", "double", "end", "zero"]))
        if edit == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "number":
            number = draw(st.sampled_from(_NUMBERS))
            width = draw(st.sampled_from([1, 2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            content[at : at + width] = (number % 256**width).to_bytes(width, order)
        elif edit == "cut":
            del content[at : at + length]
        elif edit == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif edit == "double":
            content[at:at] = content[at : at + length]
        elif edit == "end":
            del content[at:]
        else:
            content[at : at + length] = bytes(length)
    return bytes(content)


@st.composite
def parts(draw: DrawFn, pieces: Sequence[bytes]) -> list[bytes]:
    """The pieces of a file with one, sometimes more, edited, omitted, duplicated or moved."""
    found = list(pieces)
    for _ in range(draw(st.integers(1, 3))):
        if not found:
            break
        at = draw(st.integers(0, len(found) - 1))
        edit = draw(st.sampled_from(["edit", "edit", "drop", "double", "move"]))
        if edit == "edit":
            found[at] = draw(edited(found[at], 2))
        elif edit == "drop":
            del found[at]
        elif edit == "double":
            found.insert(at, found[at])
        else:
            found.insert(draw(st.integers(0, len(found) - 1)), found.pop(at))
    return found


# -- PNG: chunks with right checksums --------------------------------------------------------


@st.composite
def png(draw: DrawFn, seed: bytes) -> bytes:
    """Changed chunks with correct lengths and checksums."""
    pieces, at = [], 8
    while at < len(seed):
        (size,) = struct.unpack_from(">I", seed, at)
        pieces.append(seed[at + 4 : at + 8 + size])
        at += 12 + size
    content = seed[:8]
    for piece in draw(parts(pieces)):
        size = struct.pack(">I", max(0, len(piece) - 4))
        content += size + piece + struct.pack(">I", zlib.crc32(piece))
    return content


# -- JSON ------------------------------------------------------------------------------------

_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    -(10**400),
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "nan",
    "\x1b[31m\n\x00" + "x" * 3000,
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": None},
]


@st.composite
def changed(draw: DrawFn, value: Any) -> Any:
    """A JSON value with one of its values replaced, omitted or duplicated."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(_VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    new: Any = value.copy()
    edit = draw(st.sampled_from(["go in", "go in", "drop", "add"]))
    if edit == "go in":
        new[key] = draw(changed(value[key]))
    elif edit == "drop":
        del new[key]
    elif isinstance(new, dict):
        new[draw(st.sampled_from(["", "x", "\x1b[31m", "y" * 3000]))] = draw(
            st.sampled_from(_VALUES)
        )
    else:
        new.append(draw(st.sampled_from([*_VALUES, new[-1]])))
    return new


@st.composite
def json_text(draw: DrawFn, value: Any) -> bytes:
    """JSON with nearly the right content, or endlessly nested, or invalid text."""
    kind = draw(st.sampled_from(["value", "value", "value", "value", "deep", "bytes"]))
    if kind == "value":
        return json.dumps(draw(changed(value))).encode()
    if kind == "deep":
        depth = draw(st.sampled_from([100, 300, 100_000]))
        left, right = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
        deep = left * depth + b"1" + right * depth
        return draw(st.sampled_from([deep, b'{"x": ' + deep + b"}", left * depth]))
    return draw(edited(json.dumps(value).encode()))


# -- containers ------------------------------------------------------------------------------


@st.composite
def safetensors(draw: DrawFn, seed: bytes) -> bytes:
    """A changed JSON header with a correct length, or changed bytes."""
    if draw(st.booleans()):
        return draw(edited(seed))
    (size,) = struct.unpack_from("<Q", seed)
    header = draw(json_text(json.loads(seed[8 : 8 + size])))
    return struct.pack("<Q", len(header)) + header + seed[8 + size :]


def members(seed: bytes) -> dict[str, bytes]:
    """The members of a zip."""
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_NAMES = [
    "../x.png",
    "/x.png",
    "..\\x.png",
    "a" * 3000 + ".png",
    "\x1b[31m\n.png",
    "",
    "x/",
    "é.png",
]


@st.composite
def zipped(
    draw: DrawFn,
    seed: Mapping[str, bytes],
    inside: Mapping[str, SearchStrategy[bytes]] = MappingProxyType({}),
    packed: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """A zip with changed contents, names or headers."""
    if draw(st.integers(0, 3)) == 0:
        return draw(edited(_pack([*seed.items()], packed)))
    content = [*seed.items()]
    at = draw(st.integers(0, len(content) - 1))
    name, old = content[at]
    edit = draw(st.sampled_from(["inside", "inside", "name", "twice", "drop", "lie", "bomb"]))
    if edit == "inside":
        content[at] = name, draw(edited(old) if name not in inside else inside[name])
    elif edit == "name":
        content[at] = draw(st.sampled_from(_NAMES)), old
    elif edit == "twice":
        content.append((name, draw(edited(old))))
    elif edit == "drop":
        del content[at]
    elif edit == "bomb":
        packed = draw(st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
        content[at] = name, bytes(20_000_000 if packed == zipfile.ZIP_DEFLATED else 2_000_000)
    whole = _pack(content, packed)
    return draw(_lying(whole)) if edit in ("lie", "bomb") else whole


def _pack(content: Sequence[tuple[str, bytes]], packed: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed, compresslevel=1) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in content:
            archive.writestr(zipfile.ZipInfo(name), data, packed)
    return file.getvalue()


@st.composite
def _lying(draw: DrawFn, whole: bytes) -> bytes:
    """Other flags, method, checksum or sizes of every entry, in both of its headers."""
    content = bytearray(whole)
    at, form = draw(
        st.sampled_from([(8, "H"), (10, "H"), (16, "I"), (20, "I"), (24, "I"), (42, "I")])
    )
    number = draw(st.sampled_from([0, 1, 9, 12, 14, 99, 1000, 0x0841, 0xFFFF, 2**31, 2**32 - 1]))
    number %= 2 ** (16 if form == "H" else 32)
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        struct.pack_into(f"<{form}", content, place + at, number)
    place = -1
    while at < 28 and (place := content.find(b"PK\x03\x04", place + 1)) >= 0:
        if draw(st.booleans()):
            struct.pack_into(f"<{form}", content, place + at - 2, number)
    return bytes(content)


@st.composite
def pickled(draw: DrawFn, seed: bytes) -> bytes:
    """A pickle with changed instructions or bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(edited(seed))
    places = [place for _, _, place in pickletools.genops(seed)]
    pieces = [
        seed[a:b] for a, b in zip(places, [*places[1:], len(seed)], strict=True) if a is not None
    ]
    return b"".join(draw(parts(pieces)))
