"""Formats: pictures, arrays and DICOM, each read at the depth of its file."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

from gifd.formats.arrays import read_array
from gifd.formats.dicom import read_dicom
from gifd.formats.picture import LUMA, Picture
from gifd.formats.raster import read_raster

__all__ = ["ENDINGS", "LUMA", "Picture", "read_picture", "read_raster"]

READERS = {".npy": read_array, ".dcm": read_dicom}
ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif", *READERS}
)
"""Endings of image files in a folder or zip."""


def read_picture(file: io.BufferedReader | io.BytesIO, name: str, path: str) -> Picture:
    """The picture in a file, by the reader of its ending; any other ending is Pillow's.

    Args:
        file: opened for reading bytes.
        name: for errors.
        path: of the file, or inside its archive.

    Raises:
        InputError: not an image, a damaged one, or one that would lose bits.
    """
    return READERS.get(PurePosixPath(path).suffix.lower(), read_raster)(file, name)
