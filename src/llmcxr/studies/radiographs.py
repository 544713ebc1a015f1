"""Radiograph files to the network's squares: the one door to pixels.

Two representations exist:
  read:    float32 [H, W] in [0, 1], bone white (towards 1) and air black, at the file's own size;
  network: float32 [S, S] in [-1, 1], stored and shipped as uint8 by `to_uint8` / `from_uint8`.
Letters: H and W the file's height and width, S the side of the square.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.studies.dicom import read_dicom
from llmcxr.studies.geometry import CENTRE_CROP, Geometry, to_square
from llmcxr.studies.grey_scale import Radiograph
from llmcxr.studies.pictures import read_picture, read_pil

_DICOM_SUFFIXES = {".dcm", ".dicom"}
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
_DICOM_GROUPS = (
    b"\x02\x00",
    b"\x08\x00",
    b"\x00\x02",
    b"\x00\x08",
)  # a DICOM file that lost its preamble begins with one
_LONGEST = 5  # times the shorter side: no radiograph is longer
_MAGNIFIED = 4  # times at most: smaller images show nothing at the size that is asked for


def is_dicom(path: Path) -> bool:
    """Whether a file is read as DICOM: by its content, else by its suffix. `OSError` where it is not there."""
    with open(path, "rb") as stream:
        head = stream.read(132)
    if head.startswith(_PICTURES):
        return False
    return head[128:] == b"DICM" or path.suffix.lower() in _DICOM_SUFFIXES or head.startswith(_DICOM_GROUPS)


def _checked(found: Radiograph) -> Radiograph:
    pixels, name = found.pixels, found.name
    if pixels.ndim != 2 or not pixels.size:
        raise UserError(f"{name} has the shape {pixels.shape}, not a height and a width. Replace it or leave it out.")
    if not np.isfinite(pixels).all():
        raise UserError(f"{name} holds values that are not finite. Replace it or leave it out.")
    if pixels.min() == pixels.max():
        raise UserError(f"{name} has the same value everywhere: it shows nothing. Replace it or leave it out.")
    if max(pixels.shape) > _LONGEST * min(pixels.shape):
        raise UserError(f"{name} has {found.size} pixels: no radiograph is so narrow. Replace it or leave it out.")
    return found


def read_radiograph(image: str | Path | Image.Image) -> Radiograph:
    """Read a PNG, JPEG or DICOM file (what it is, its content says), or a PIL image, at its own size.

    Raises `UserError` naming the file where it is missing, damaged, no image, empty, constant, larger or narrower than
    any radiograph, and as `pictures.read_picture` and `dicom.read_dicom` say (`dicom.OtherModalityError` for a CT and
    the like).
    """
    if isinstance(image, Image.Image):
        return _checked(read_pil(image))
    path = Path(image)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes). Copy it again or leave it out.")
        dicom = is_dicom(path)
    except (OSError, ValueError) as error:  # the latter: a zero byte or half a character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be opened ({reason}). Check the path and its permissions.") from error
    return _checked(read_dicom(path) if dicom else read_picture(path))


def to_uint8(x: np.ndarray) -> np.ndarray:
    """[-1, 1] (any shape; beyond is clipped) to uint8: -1 is 0, 1 is 255."""
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def from_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]; `to_uint8(from_uint8(p))` is `p`."""
    return pixels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def network_square(found: Radiograph, size: int, geometry: Geometry = CENTRE_CROP) -> np.ndarray:
    """What was read to float32 [size, size] in [-1, 1]; an 8-bit grey image of that very size comes out unchanged.

    Raises `UserError` where it would have to be magnified more than four times, or where the square shows nothing.
    """
    if min(found.pixels.shape) * _MAGNIFIED < size:
        raise UserError(f"{found.name} has {found.size} pixels: too few to show anything at {size}. Find a larger one.")
    square = to_square(found.pixels, size, geometry)
    if square.min() == square.max():
        raise UserError(f"{found.name} shows nothing in the square that is kept of it. Replace it or leave it out.")
    return square


def load_square(image: str | Path | Image.Image, size: int, geometry: Geometry = CENTRE_CROP) -> np.ndarray:
    """A file or PIL image to float32 [size, size] in [-1, 1]: `network_square(read_radiograph(image), ...)`."""
    return network_square(read_radiograph(image), size, geometry)
