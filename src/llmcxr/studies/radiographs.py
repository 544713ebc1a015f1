"""Radiograph files to pixels: the only place that owns grey-scale conventions and normalisation.

Two representations exist:
  read:    float32 [H, W] in [0, 1], bone white (towards 1) and air black, at the file's own size;
  network: float32 [S, S] in [-1, 1], stored and shipped as uint8 by `to_uint8` / `from_uint8`.
Letters: H and W the file's height and width, S the side of the square.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from llmcxr.foundation.errors import UserError

_DICOM_SUFFIXES = {".dcm", ".dicom"}
_DEPTHS = (10, 12, 14, 16)


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _window(pixels: np.ndarray, dataset: Any, path: Path) -> np.ndarray:
    """Values of interest to [0, 1] by the file's first window."""
    window = pydicom.Dataset()
    window.PhotometricInterpretation, window.PixelRepresentation = "MONOCHROME2", 0
    window.BitsStored = 1  # pydicom stretches the window over the range of the stored bits: 0 to 1
    for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if dataset.get(name) is not None:
            setattr(window, name, dataset.get(name))
    try:
        return apply_windowing(pixels, window)
    except ValueError as error:
        raise UserError(
            f"{path}: its window cannot be applied ({error}). Correct the DICOM header or leave the file out."
        ) from error


def _read_dicom(path: Path) -> np.ndarray:
    try:
        # A file with the suffix but without the preamble is still read: some archives strip it.
        dataset = pydicom.dcmread(path, force=path.suffix.lower() in _DICOM_SUFFIXES)
        photometric = str(dataset.get("PhotometricInterpretation", ""))
        frames = int(dataset.get("NumberOfFrames") or 1)
        has_pixels = "PixelData" in dataset
    except (InvalidDicomError, OSError, ValueError, TypeError, EOFError, AttributeError) as error:
        raise UserError(f"{path} is not a readable DICOM file ({error}). Replace it or leave it out.") from error
    if not has_pixels:
        raise UserError(f"{path} holds no pixel data. Use the DICOM object that holds the image, or leave it out.")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(
            f"{path}: photometric interpretation {photometric or '(none)'} is not a radiograph's; "
            f"MONOCHROME1 and MONOCHROME2 are read. Convert the file or leave it out."
        )
    if frames > 1:
        raise UserError(
            f"{path} holds {frames} frames; a radiograph has one. Export the frame that you want as its own file."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # padding bytes and the like; what matters raises
            stored = dataset.pixel_array
            pixels = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
            if dataset.get("VOILUTSequence"):
                bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
                pixels = apply_voi(pixels.astype(np.int64), dataset) / (2.0**bits - 1)
            elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
                pixels = _window(pixels, dataset, path)
            elif pixels.size and (spread := float(np.ptp(pixels))) > 0:
                pixels = (pixels - pixels.min()) / spread
            else:
                pixels = np.zeros_like(pixels)
    except UserError:
        raise
    except Exception as error:  # pydicom and its decoders raise almost anything on a damaged or exotic file
        raise UserError(
            f"{path}: the pixel data cannot be decoded ({' '.join(str(error).split())}). "
            f"If it is compressed, install pylibjpeg, pylibjpeg-libjpeg and pylibjpeg-openjpeg; "
            f"if it is damaged, replace it or leave it out."
        ) from error
    return 1 - pixels if photometric == "MONOCHROME1" else pixels


def pixels_of_picture(picture: Image.Image) -> np.ndarray:
    """A PIL image as displayed to float32 [H, W] in [0, 1].

    8 bits are divided by 255, integers of more bits by the full range of the smallest of 10, 12, 14 or 16 bits that holds the
    maximum; floating-point values are taken as they are; colour becomes luminance (ITU-R 601); alpha is ignored.
    Raises `ValueError` for values below 0 or above that range.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture, dtype=np.float64)
        # Detectors give 10 to 16 bits, and PNG has no field that is used for saying how many.
        bits = next((d for d in _DEPTHS if values.max(initial=0) < 2**d), 16)
        values /= 1 if picture.mode == "F" else 2.0**bits - 1
        if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
            raise ValueError(f"values of {picture.mode} images should be 0 to {1 if picture.mode == 'F' else 65535}")
        return values.astype(np.float32)
    if picture.mode not in ("1", "L", "RGB"):
        picture = picture.convert("RGB")  # drops alpha
    return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            return pixels_of_picture(picture)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a PNG, JPEG or DICOM image. Convert it or leave it out.") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be decoded ({error}). It may be truncated: copy it again or leave it out."
        ) from error


def _check(pixels: np.ndarray, path: Path) -> None:
    if pixels.ndim != 2 or not pixels.size:
        raise UserError(f"{path} has the shape {pixels.shape}, not a height and a width. Replace it or leave it out.")
    if not np.isfinite(pixels).all():
        raise UserError(f"{path} holds values that are not finite. Replace it or leave it out.")
    if pixels.min() == pixels.max():
        raise UserError(f"{path} has the same value everywhere: it shows nothing. Replace it or leave it out.")


def read_radiograph(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or DICOM file as float32 [H, W] in [0, 1], bone white and air black.

    PNG and JPEG: taken as displayed, i.e. bone white already, by `pixels_of_picture`. DICOM: modality LUT or rescale first, then the VOI LUT or the first window where the file has one, else the
    range from the image's minimum to its maximum; MONOCHROME1 is inverted last. What the window cuts off is 0 or 1.

    Raises `UserError` naming the file where it is missing, truncated, no image, empty, constant, colour or multi-frame
    DICOM, or compressed by a method for which no decoder is installed.
    """
    path = Path(path)
    try:
        dicom = path.suffix.lower() in _DICOM_SUFFIXES or _is_dicom(path)
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes). Copy it again or leave it out.")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}). Check the path and its permissions.") from error
    pixels = _read_dicom(path) if dicom else _read_picture(path)
    _check(pixels, path)
    return pixels.astype(np.float32, copy=False)


def to_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """[H, W] in [0, 1] to float32 [size, size] in [-1, 1].

    The shorter side is resized to `size` (Lanczos) and the centre square kept. The square is resampled directly from
    its box in the input, so both axes have exactly the same scale and nothing outside the crop is computed.
    """
    H, W = pixels.shape
    side = min(H, W)
    box = ((W - side) / 2, (H - side) / 2, (W + side) / 2, (H + side) / 2)
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    square = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=box))
    return np.clip(square, 0, 1) * np.float32(2) - np.float32(1)  # Lanczos overshoots at edges


def to_uint8(x: np.ndarray) -> np.ndarray:
    """[-1, 1] (any shape; beyond is clipped) to uint8: -1 is 0, 1 is 255."""
    return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def from_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]; `to_uint8(from_uint8(p))` is `p`."""
    return pixels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def load_square(path: Path, size: int) -> np.ndarray:
    """Read a file to float32 [size, size] in [-1, 1]: `to_square(read_radiograph(path), size)`.

    An 8-bit grey PNG of that very size skips the resampling, with the same result.
    """
    pixels = read_radiograph(path)
    if pixels.shape == (size, size):
        return pixels * np.float32(2) - np.float32(1)
    return to_square(pixels, size)
