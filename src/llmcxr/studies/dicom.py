"""DICOM files to grey values.

Stored values -> modality LUT or rescale -> VOI LUT or window -> presentation LUT shape or photometric interpretation
(PS3.3 C.7.6.3, C.11). Archives hold every kind of header, so what a header says is used where it makes a picture of
the data, and what was done instead is said (`Radiograph.grey_scale`, `remarks`).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_windowing, get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    RLELossless,
)

from llmcxr.foundation.errors import UserError
from llmcxr.studies.grey_scale import MOST_PIXELS, RANGE, Radiograph, sample, stretch, value_range
from llmcxr.studies.quiet import no_warnings

# Radiographs, and what says nothing of itself (secondary captures); all else among them is refused by name.
MODALITIES = ("CR", "DX", "DR", "RG", "RF", "OT", "SC", "")
_MOST_BYTES = 4 * MOST_PIXELS  # of a file, or of what it inflates to
_LEAST_SPREAD = 0.25  # of the range of grey: a window that leaves less of it to the data is not theirs
_MOST_CLIPPED = 0.95  # of the pixels: a window that cuts off more shows nothing
_TABLE = 2**17  # as many stored values at most are mapped by a table
_UNEQUAL = 0.01  # pixels whose sides differ by less are square

Curve = Callable[[np.ndarray], np.ndarray]  # values of interest to [0, 1]


class OtherModalityError(UserError):
    """A whole DICOM file that is no radiograph: a CT slice, a segmentation, a dose."""

    def __init__(self, path: Path, modality: str) -> None:
        super().__init__(f"{path} is no radiograph: its modality is {modality}. Leave it out.")
        self.modality = modality


# --- the file


def _bound(path: Path) -> None:
    """`UserError` where the file, or what it inflates to, is larger than any radiograph; nothing is kept of either."""
    what = f"more than any radiograph takes ({_MOST_BYTES >> 20} MiB). Leave it out"
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size >> 20} MiB, {what}.")
    with open(path, "rb") as stream:
        if read_preamble(stream, force=True) is None:
            return
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        if _inflated(stream) > _MOST_BYTES:
            raise UserError(f"{path} inflates to {what}.")


def _inflated(stream: BinaryIO) -> int:
    """Bytes that a raw deflate stream inflates to; counting ends beyond the most that is read."""
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for block in iter(lambda: stream.read(2**16), b""):
        while block and not inflate.eof and total <= _MOST_BYTES:
            total += len(inflate.decompress(block, 2**20))
            block = inflate.unconsumed_tail
    return total


def read_header(path: Path, pixels: bool = False) -> pydicom.Dataset:
    """The tags of a DICOM file, also of one without preamble or file meta; with `pixels` also the pixel data, still
    encoded.

    Raises `UserError` naming the file where it is missing, damaged, no DICOM file, or larger than any radiograph.
    """
    try:
        with no_warnings():
            _bound(path)
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
            if not any(tag.group in (0x0008, 0x0028) for tag in dataset.keys()):  # noqa: SIM118
                raise ValueError("it has no header of an image")
            return dataset
    except UserError:
        raise
    except Exception as error:  # pydicom raises almost anything on damaged files
        raise UserError(f"{path} is not a readable DICOM file ({_why(error)}). Replace it or leave it out.") from error


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- stored values


def _complete(dataset: pydicom.Dataset) -> list[str]:
    """Fill in what a header lacks and its meaning needs; says what was."""
    remarks = []
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        meta = dataset.file_meta = FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        if dataset["PixelData"].is_undefined_length:
            raise ValueError("it is compressed, and no transfer syntax says how")
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
        remarks.append("no transfer syntax, taken as it lies")
    if dataset.get("BitsAllocated") is None:
        raise ValueError("BitsAllocated is missing")
    for name, value in {
        "SamplesPerPixel": 1,
        "PixelRepresentation": 0,
        "BitsStored": dataset.BitsAllocated,
    }.items():
        if dataset.get(name) is None:
            setattr(dataset, name, value)
            remarks.append(f"no {name}, taken as {value}")
    if dataset.get("HighBit") is None:
        dataset.HighBit = dataset.BitsStored - 1
    return remarks


def _check_size(dataset: pydicom.Dataset) -> None:
    """`ValueError` for sizes that are none, that no radiograph has, or that the compressed image contradicts."""
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        raise ValueError("Rows or Columns is missing")
    size = (int(dataset.Rows), int(dataset.Columns))
    if min(size) < 1:
        raise ValueError(f"it has {size[0]} rows and {size[1]} columns")
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are more than any radiograph has, {MOST_PIXELS:,}")
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if not syntax.is_compressed or syntax in (RLELossless, DeflatedExplicitVRLittleEndian):
        return
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    decoder = import_module("openjpeg.utils" if syntax in JPEG2000TransferSyntaxes else "libjpeg.utils")
    found = decoder.get_parameters(frame)
    if (found["rows"], found["columns"]) != size:
        raise ValueError(
            f"its compressed image has {found['rows']} x {found['columns']} pixels, "
            f"its header says {size[0]} x {size[1]}"
        )


def _stored(dataset: pydicom.Dataset) -> tuple[np.ndarray, list[str]]:
    """(stored values [H, W], remarks); any exception where they cannot be decoded."""
    remarks = _complete(dataset)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    get_decoder(syntax)  # raises where there is none
    _check_size(dataset)
    allocated, stored, high = int(dataset.BitsAllocated), int(dataset.BitsStored), int(dataset.HighBit)
    if syntax.is_encapsulated or "PixelData" not in dataset or stored == allocated:
        return dataset.pixel_array, remarks
    if not (0 < stored <= high + 1 <= allocated):
        raise ValueError(f"BitsAllocated {allocated}, BitsStored {stored} and HighBit {high} contradict each other")
    dataset.BitsStored = allocated  # pydicom does not look at HighBit, and hides values beyond BitsStored
    whole = dataset.pixel_array
    whole = whole.astype(whole.dtype.newbyteorder("="), copy=False)
    dataset.BitsStored = stored
    unused = whole.view(f"u{whole.dtype.itemsize}") >> (high + 1)
    extended = (unused == 0) | (unused == (1 << (allocated - high - 1)) - 1 if dataset.PixelRepresentation else False)
    overlays = any(tag.group & 0xFF00 == 0x6000 and tag.element == 0x0102 for tag in dataset.keys())  # noqa: SIM118
    if high + 1 == stored and not overlays and np.mean(~extended) > 0.01:
        return whole, [*remarks, "values of more bits than BitsStored, all taken"]
    return (whole << (allocated - high - 1)) >> (allocated - stored), remarks


def _padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Mask [H, W] of padding, i.e. of its values where they reach the edge; None where there is none."""
    first = _number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _number(dataset, "PixelPaddingRangeLimit")
    bits = 2 ** int(dataset.BitsAllocated)
    low, high = sorted((first, first if last is None else last))
    # Signed values are written as unsigned ones, and the reverse.
    shift = (
        -bits
        if dataset.PixelRepresentation and low >= bits / 2
        else bits
        if not dataset.PixelRepresentation and low < 0
        else 0
    )
    mask = (stored >= low + shift) & (stored <= high + shift)
    if not mask.any():
        return None
    from scipy import ndimage  # slow to load, and rarely needed

    parts, _ = ndimage.label(mask)
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    mask = np.isin(parts, edge[edge > 0])
    return mask if mask.any() and not mask.all() else None


# --- grey values


def _number(dataset: pydicom.Dataset, name: str) -> float | None:
    """A number of the header; None where it is missing or empty. `ValueError` where it is none."""
    value = dataset.get(name)
    if value is None or value == "" or (isinstance(value, pydicom.multival.MultiValue) and not value):
        return None
    if isinstance(value, bytes):  # written with a VR of its own
        value = int.from_bytes(value[:2], "little")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value}")
    return number


def _code(dataset: pydicom.Dataset, name: str) -> str:
    """A word of the header in capitals; "" where it is missing."""
    return "".join(filter(str.isprintable, str(dataset.get(name) or ""))).strip().upper()


def _numbers(dataset: pydicom.Dataset, name: str) -> list[float]:
    value = dataset.get(name)
    if value is None or value == "":
        return []
    return [
        float(v) for v in (value if isinstance(value, pydicom.multival.MultiValue) else [value]) if v not in ("", None)
    ]


def _lookup(item: pydicom.Dataset, little_endian: bool) -> tuple[Curve, float]:
    """(the mapping of a LUT's item, its white): PS3.3 C.11.1.1, C.11.2.1.1. `ValueError` where it is none.

    Its white is the most that the smallest number of bits can say that holds its data, where the descriptor says more.
    """
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    count = count % 2**16 or 2**16  # one more than 16 bits can say
    data = item.LUTData
    if isinstance(data, bytes):
        kind = "u1" if bits <= 8 and len(data) < 2 * count else "<u2" if little_endian else ">u2"
        table = np.frombuffer(data[: len(data) // np.dtype(kind).itemsize * np.dtype(kind).itemsize], kind)[:count]
    else:
        table = np.asarray(data).reshape(-1)[:count] % 2**16
    if not table.size or not 1 <= bits <= 16:
        raise ValueError(f"a LUT of {table.size} entries of {bits} bits")
    white = min(2.0**bits, 2.0 ** max(1, int(table.max()).bit_length())) - 1

    def apply(values: np.ndarray) -> np.ndarray:
        start = first - 2**16 if first >= 2**15 and values.min(initial=0) < 0 else first  # signed, written as unsigned
        return table[np.clip(np.rint(values).astype(np.int64) - start, 0, table.size - 1)].astype(np.float64)

    return apply, white


def _modality(dataset: pydicom.Dataset, little_endian: bool) -> Curve:
    """Stored values to values of interest: the modality LUT, or slope and intercept, of which either may be missing."""
    if dataset.get("ModalityLUTSequence"):
        return _lookup(dataset.ModalityLUTSequence[0], little_endian)[0]
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0:
        raise ValueError("RescaleSlope is 0")
    return lambda values: values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _windows(dataset: pydicom.Dataset, little_endian: bool, remarks: list[str]) -> Iterator[tuple[str, Curve]]:
    """(name, mapping to [0, 1]) of what the file offers to be shown with: VOI LUTs, then windows, in its order."""
    for item in dataset.get("VOILUTSequence") or ():
        lookup, white = _lookup(item, little_endian)
        yield "VOI LUT", lambda values, f=lookup, w=white: f(values) / w  # type: ignore[misc]
    function = (_code(dataset, "VOILUTFunction") or "LINEAR").replace(" ", "_")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        function = "LINEAR"
        remarks.append("unknown VOI LUT function, taken as LINEAR")
    for center, width in zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False):
        if not (math.isfinite(center) and math.isfinite(width)) or width < (1 if function == "LINEAR" else 1e-9):
            remarks.append("window without a width, not used")
            continue
        window = pydicom.Dataset()
        window.PhotometricInterpretation, window.PixelRepresentation = "MONOCHROME2", 0
        window.BitsStored = 1  # pydicom stretches the window over the range of the stored bits: 0 to 1
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = str(center)[:16], str(width)[:16], function
        yield f"window {function}", lambda values, w=window: apply_windowing(values, w)  # type: ignore[misc]


def _shown(values: np.ndarray, dataset: pydicom.Dataset, little_endian: bool, remarks: list[str]) -> tuple[Curve, str]:
    """The first VOI LUT or window that makes a picture of `values` (a sample), else their range."""
    try:
        for name, curve in _windows(dataset, little_endian, remarks):
            grey = curve(values)
            black, white = value_range(grey)
            if np.mean((grey <= 0) | (grey >= 1)) > _MOST_CLIPPED:
                remarks.append(f"{name} outside the data, not used")
            elif white - black < _LEAST_SPREAD:
                remarks.append(f"{name} far wider than the data, not used")
            else:
                return curve, f"DICOM {name}"
    except (ValueError, TypeError, AttributeError, IndexError, NotImplementedError, OverflowError):
        remarks.append("VOI LUT or window unreadable, not used")
    black, white = value_range(values)
    return lambda v: stretch(v, black, white), f"DICOM {RANGE}"


def _inverted(dataset: pydicom.Dataset, photometric: str, remarks: list[str]) -> bool:
    """Whether large values are black. The presentation LUT shape decides where there is one, as in dcm4che."""
    inverted = photometric == "MONOCHROME1"
    shape = _code(dataset, "PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE") and (shape == "INVERSE") != inverted:
        inverted = not inverted
        remarks.append(f"{photometric} with presentation LUT shape {shape}, which decides")
    return inverted


def _squared(pixels: np.ndarray, dataset: pydicom.Dataset, remarks: list[str]) -> np.ndarray:
    """With square pixels: the coarser axis is resampled to the spacing of the finer one."""
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):  # each: of rows, of columns
        spacing = _numbers(dataset, name)
        if len(spacing) == 2 and min(spacing) > 0:
            break
    else:
        return pixels
    ratio = spacing[0] / spacing[1]
    if abs(ratio - 1) < _UNEQUAL:
        return pixels
    H, W = pixels.shape
    size = (W, round(H * ratio)) if ratio > 1 else (round(W / ratio), H)
    if not 0.1 < ratio < 10 or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"{name} of {spacing[0]:g} to {spacing[1]:g} is no radiograph's")
    remarks.append(f"pixels not square ({name}), made so")
    return np.clip(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)), 0, 1)


def read_dicom(path: Path) -> Radiograph:
    """A DICOM file of one grey frame.

    Raises `OtherModalityError` for whole files of another modality, and `UserError` naming the file where it is
    missing, damaged, too large, in colour, of several frames, compressed by a method that is not read, or wrong in a
    part of its header that matters.
    """
    dataset = read_header(path, pixels=True)
    try:
        with no_warnings():
            return _grey(dataset, path)
    except UserError:
        raise
    except Exception as error:  # pydicom and its decoders raise almost anything on a damaged or exotic file
        raise UserError(
            f"{path}: its pixels cannot be read ({_why(error)}). Its header or pixel data is damaged or unusual: "
            f"replace it, convert it to PNG, or leave it out."
        ) from error


def _grey(dataset: pydicom.Dataset, path: Path) -> Radiograph:
    modality = _code(dataset, "Modality")
    if modality and not re.fullmatch(r"[A-Z][A-Z0-9_]{1,15}", modality):
        raise ValueError("its modality is no code")
    if modality not in MODALITIES:
        raise OtherModalityError(path, modality)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UserError(f"{path} holds no pixel data. Use the DICOM object that holds the image, or leave it out.")
    photometric = _code(dataset, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(
            f"{path}: photometric interpretation {photometric or '(none)'} is not a radiograph's; "
            f"MONOCHROME1 and MONOCHROME2 are read. Convert the file or leave it out."
        )
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise UserError(
            f"{path} holds {frames} frames; a radiograph has one. Export the frame that you want as its own file."
        )
    stored, remarks = _stored(dataset)
    if stored.ndim != 2 or not np.isfinite(stored).all():
        raise ValueError(f"values of shape {stored.shape}, not all of them finite" if stored.ndim == 2 else "colour")
    little_endian = UID(dataset.file_meta.TransferSyntaxUID).is_little_endian
    padding = _padding(stored, dataset)
    if padding is not None:
        remarks.append("padding made black")
    modality_lut = _modality(dataset, little_endian)
    seen = sample(stored) if padding is None else stored[~padding][:: max(1, stored.size // 2**22)]
    curve, grey_scale = _shown(modality_lut(seen.astype(np.float64)), dataset, little_endian, remarks)
    low, high = int(stored.min()), int(stored.max())
    if np.issubdtype(stored.dtype, np.integer) and high - low < _TABLE:
        levels = curve(modality_lut(np.arange(low, high + 1, dtype=np.float64))).astype(np.float32)
        pixels = levels[stored.astype(np.int32) - low]
    else:
        pixels = curve(modality_lut(stored.astype(np.float64))).astype(np.float32)
    if _inverted(dataset, photometric, remarks):
        pixels = 1 - pixels
    if padding is not None:
        pixels[padding] = 0
    pixels = _squared(pixels, dataset, remarks)
    if _code(dataset, "PatientOrientation").strip("[]'\" ").startswith("R"):
        remarks.append(
            "mirrored as stored: its rows run to the patient's right"
        )  # said, since archives err in this, too
    if _code(dataset, "LossyImageCompression") == "01":
        remarks.append("lossy (DICOM)")
    return Radiograph(str(path), pixels, grey_scale, tuple(remarks))
