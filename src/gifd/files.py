"""Files from elsewhere: safe checks of paths, and safe reading of zip members."""

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
    RuntimeError,  # encrypted, or, as NotImplementedError, of an unknown compression
    ValueError,  # an undecodable name, a negative offset
    OverflowError,
)
"""What `zipfile` raises for an archive that is damaged, encrypted or of an unknown compression."""

_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PIECE = 1 << 20


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file; False for impossible paths (name too long, no access)."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder, likewise."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of an archive's member, reading no more than its size or `most` bytes.

    Raises:
        KeyError: no member of this name.
        one of `BROKEN_ZIP`: larger, of an unusual compression, or damaged.
    """
    info = archive.getinfo(name)
    if info.compress_type not in _PACKED:  # others decompress without a bound
        raise zipfile.BadZipFile(f"'{name}' is neither stored nor deflated")
    if info.file_size > most:
        raise zipfile.BadZipFile(f"'{name}' is larger than {most:,} bytes")
    pieces, left = [], info.file_size
    with archive.open(info) as file:
        while piece := file.read(min(_PIECE, left + 1)):
            pieces.append(piece)
            left -= len(piece)
    if left:
        raise zipfile.BadZipFile(f"'{name}' is not of the size that the archive states")
    return b"".join(pieces)
