"""Files of others: what lies at a path, and what an archive holds, without surprises."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,  # encrypted, or, as NotImplementedError, packed in an unknown way
    ValueError,  # a name that is no text, a negative offset
    OverflowError,
)
"""What `zipfile` raises for an archive that is damaged, encrypted or packed in an unknown way."""

_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PIECE = 1 << 20


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there; not where none can be (a name too long, no permission)."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there, likewise."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of an archive's member, unpacked no further than its size or `most` bytes.

    Raises:
        KeyError: no member of this name.
        one of `BROKEN_ZIP`: larger, packed in another way than zips usually are, or damaged.
    """
    info = archive.getinfo(name)
    if info.compress_type not in _PACKED:  # the others unpack without a bound
        raise zipfile.BadZipFile(f"'{name}' is neither stored nor deflated")
    if info.file_size > most:
        raise zipfile.BadZipFile(f"'{name}' is larger than {most:,} bytes")
    pieces, left = [], info.file_size
    with archive.open(info) as file:
        while piece := file.read(min(_PIECE, left + 1)):
            pieces.append(piece)
            left -= len(piece)
    if left:
        raise zipfile.BadZipFile(f"'{name}' has not the size that the archive says")
    return b"".join(pieces)
