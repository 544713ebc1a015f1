"""PNG and JPEG files, and PIL images, to grey values: taken as displayed, i.e. bone white already.

PNG states no depth that is used: files of 16 bits hold 8 to 16 bits of a detector, so their grey scale is
`grey_scale.value_range`.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from llmcxr.foundation.errors import UserError
from llmcxr.studies.grey_scale import MOST_PIXELS, RANGE, Radiograph, sample, stretch, value_range
from llmcxr.studies.quiet import no_warnings

_FORMATS = ("PNG", "JPEG")
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's own
_ORIENTATION = 0x0112
# Pillow keeps only the high bytes of 16-bit colour and of grey with alpha. These raw modes give it the low bytes, too.
_DEEP: dict[str, tuple[str, tuple[str, ...]]] = {
    "LA;16B": ("RGBA", ("RGBA",)),
    "RGB;16B": ("RGB", ("RGB;16B", "RGB;16L")),
    "RGBA;16B": ("RGBA", ("RGBA;16B", "RGBA;16L")),
}


def _too_large(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UserError(
            f"the image has {width} x {height} pixels, more than any radiograph ({MOST_PIXELS:,} at most). "
            f"Scale it down or leave it out."
        )


def _deep_colour(picture: Image.Image) -> np.ndarray | None:
    """Luminance [H, W] of a PNG of 16-bit colour or grey with alpha, not decoded yet; None for any other."""
    if not isinstance(picture, PngImagePlugin.PngImageFile) or not picture.tile or picture.fp is None:
        return None
    raw = str(picture.tile[0].args)
    if raw not in _DEEP:
        return None
    place = picture.fp.tell()
    picture.fp.seek(0)
    file = picture.fp.read()
    picture.fp.seek(place)
    mode, raw_modes = _DEEP[raw]
    parts = []
    for raw_mode in raw_modes:
        part = Image.open(io.BytesIO(file), formats=("PNG",))
        tile = part.tile[0]
        part._mode = mode  # type: ignore[attr-defined]
        part.tile = [ImageFile._Tile(tile.codec_name, tile.extents, tile.offset, raw_mode)]
        parts.append(np.asarray(part, dtype=np.float32))
    if raw == "LA;16B":
        return parts[0][..., 0] * 256 + parts[0][..., 1]
    return np.dot(parts[0][..., :3] * 256 + parts[1][..., :3], np.array(_LUMINANCE, dtype=np.float32))


def _grey(picture: Image.Image) -> tuple[np.ndarray, str]:
    """(float32 [H, W] in [0, 1], how the grey scale was found), as the file lies, not yet turned."""
    deep = _deep_colour(picture)
    if deep is not None:
        return stretch(deep, *value_range(sample(deep))), f"16-bit colour or alpha, {RANGE}"
    if picture.mode == "F":
        values = np.asarray(picture, dtype=np.float32)
        if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
            raise UserError("the image's real numbers should be 0 to 1. Scale them or leave it out.")
        return values, "real numbers, 0 to 1"
    if picture.mode.startswith("I"):
        whole = np.asarray(picture)
        if whole.min(initial=0) < 0 or whole.max(initial=0) > 65535:
            raise UserError("the image's values should be 0 to 65535. Scale them or leave it out.")
        return stretch(whole, *value_range(sample(whole))), f"16 bits, {RANGE}"
    if picture.mode not in ("1", "L", "RGB"):
        picture = picture.convert("RGB")  # drops alpha
    return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255), "8 bits as displayed"


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W] as EXIF's orientation (1 to 8) says that they are to be shown; any other number changes nothing."""
    if orientation >= 5:
        pixels = pixels.T
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _transparent(picture: Image.Image) -> bool:
    if not picture.has_transparency_data:
        return False
    alpha: Any = picture.convert("RGBA").getchannel("A").getextrema() if picture.mode[0] != "I" else (255, 255)
    return bool(alpha[0] < 255)


def read_pil(picture: Image.Image) -> Radiograph:
    """A PIL image as displayed, bone white.

    8 bits are divided by 255, integers of more bits stretched from darkest to brightest; floating-point values are
    taken as they are; colour becomes luminance; transparent parts are shown; EXIF's orientation is obeyed.
    Raises `UserError` for more pixels than any radiograph has, and values out of range.
    """
    _too_large(*picture.size)
    pixels, grey_scale = _grey(picture)  # first: looking for EXIF data decodes a PNG
    remarks = []
    try:
        orientation = int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises almost anything on damaged EXIF data
        orientation = 1
        remarks.append("EXIF unreadable, orientation taken as it lies")
    if _transparent(picture):
        remarks.append("transparent parts shown")
    if 2 <= orientation <= 8:
        mirrored = orientation in (2, 4, 5, 7)
        remarks.append("mirrored as EXIF says" if mirrored else "turned as EXIF says")
        pixels = turned(pixels, orientation)
    return Radiograph("the image", pixels, grey_scale, tuple(remarks))


def read_picture(path: Path) -> Radiograph:
    """A PNG or JPEG file by `read_pil`; `UserError` where it is neither, damaged, or too large.

    The checksums of all parts of a PNG are looked at. JPEG has none: a truncated file is refused, a changed byte goes
    unseen.
    """
    try:
        with no_warnings():
            with Image.open(path, formats=_FORMATS) as picture:
                _too_large(*picture.size)
                lossy = picture.format != "PNG"
                if not lossy:
                    picture.verify()
            with Image.open(path, formats=_FORMATS) as picture:
                found = read_pil(picture)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not a PNG, JPEG or DICOM image, or its header is damaged. Convert it or leave it out."
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is larger than any radiograph ({error}). Scale it down or leave it out.") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} cannot be decoded ({why}). Copy it again, convert it to 8-bit PNG, or leave it out."
        ) from error
    return replace(found, name=str(path), remarks=(*found.remarks, *(["lossy (JPEG)"] if lossy else [])))
