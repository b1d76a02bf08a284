"""DICOM: single-frame images of medical devices, by pydicom (extra 'medical')."""

from __future__ import annotations

import importlib
import io
import warnings
from typing import Any

import numpy as np

from gifd.errors import GifdError, InputError, one_line
from gifd.formats.picture import Picture

GREYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422")


def read_dicom(file: io.BufferedReader | io.BytesIO, name: str) -> Picture:
    """The image in a `.dcm`, as a viewer shows it.

    Stored values are rescaled by the file's slope and intercept. Black and white are those of its
    first window, or else of its stored bits; MONOCHROME1 is inverted.

    Raises:
        InputError: pydicom is not installed; no DICOM, several frames, or a lookup table.
    """
    try:
        with warnings.catch_warnings():  # about values that the standard does not allow
            warnings.simplefilter("ignore")
            dicom = importlib.import_module("pydicom")
            pixels = importlib.import_module("pydicom.pixels")
            data = dicom.dcmread(file)
            _check(data, name)
            if data.PhotometricInterpretation in COLOURS:
                return Picture.of(pixels.pixel_array(data) / (2.0**data.BitsStored - 1))
            return Picture.of(_shades(data, pixels))
    except GifdError:
        raise
    except ImportError:
        raise InputError(
            f"expected the library pydicom for the DICOM file {name}, it is not installed: "
            "pip install 'gifd[medical]'"
        ) from None
    except Exception as error:  # a damaged file raises nearly every type
        raise InputError(f"expected a DICOM image at {name}, got: {one_line(error)}") from None


def _check(data: Any, name: str) -> None:
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise InputError(
            f"expected a DICOM file with one frame at {name}, got {frames}: save each as a file"
        )
    kind = data.PhotometricInterpretation
    if kind not in (*GREYS, *COLOURS):
        raise InputError(
            f"expected a DICOM image of {', '.join((*GREYS, *COLOURS))} at {name}, got "
            f"{one_line(kind, 40)}"
        )
    for table in ("ModalityLUTSequence", "VOILUTSequence"):
        if data.get(table) and not (table[:3] == "VOI" and data.get("WindowCenter") is not None):
            raise InputError(
                f"expected a DICOM image with a window, or none, at {name}, got one with a "
                f"lookup table ({table}): export it as a 16-bit PNG"
            )


def _shades(data: Any, pixels: Any) -> np.ndarray:
    """Greys in [0, 1]: by the window, else by the range that the stored bits can hold."""
    bits, signed = int(data.BitsStored), int(data.PixelRepresentation)
    least = -(2.0 ** (bits - 1)) if signed else 0.0
    data.RescaleSlope = slope = data.get("RescaleSlope") or 1
    data.RescaleIntercept = intercept = data.get("RescaleIntercept") or 0
    ends = [float(slope * stored + intercept) for stored in (least, least + 2.0**bits - 1)]
    shades: np.ndarray = data.pixel_array * float(slope) + float(intercept)
    if data.get("WindowCenter") is not None:
        shades = pixels.apply_windowing(shades, data)  # to between these ends
        black, white = ends
    else:
        black, white = sorted(ends)
    shades = ((shades - black) / (white - black)).clip(0, 1)
    return 1 - shades if data.PhotometricInterpretation == "MONOCHROME1" else shades
