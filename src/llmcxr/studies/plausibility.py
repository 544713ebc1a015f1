"""Whether pixels look like a chest radiograph at all: what no header can say, and no reader notices among thousands of
images.

The limits lie well outside 1,051 real radiographs and 60 phantoms (`benchmarks/pixel_reading.py` measures what they
flag).
Letters: S side of the square.
"""

from __future__ import annotations

import numpy as np

_DARK = 50  # grey that 95 % of a nearly black image stay below; real ones: at least 117
_LIGHT = 200  # grey that 95 % of a nearly white image stay above; real ones: at most 145
_FLAT = 25  # greys between which 98 % of a nearly constant image lie; real ones: at least 62
_FEW = 0.8  # share of an image's pixels that three greys hold; real ones: at most 0.30
_INVERTED = -0.4  # lightness of mediastinum against lungs and upper corners; real ones: 99 % above 0.4, one below -0.4

REASONS = ("nearly black", "nearly white", "two or three grey values", "nearly constant", "inverted")


def implausible(pixels: np.ndarray) -> str:
    """Why uint8 [S, S] (0 air, 255 bone) does not look like a chest radiograph, one of `REASONS`; "" where it does.

    Black beside the image (padding, a letter box) does not count.
    """
    inside = _inside(pixels)
    low, dark, light, high = np.percentile(inside, (1, 5, 95, 99))
    if light < _DARK:
        return "nearly black"
    if dark > _LIGHT:
        return "nearly white"
    if np.sort(np.bincount(inside.ravel(), minlength=256))[-3:].sum() > _FEW * inside.size:
        return "two or three grey values"
    if high - low < _FLAT:
        return "nearly constant"
    return "inverted" if mediastinum_lightness(inside) < _INVERTED else ""


def _inside(pixels: np.ndarray) -> np.ndarray:
    """Without rows and columns that are black; all of it where nothing else is there."""
    lit = pixels > 2
    rows, columns = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else pixels


def mediastinum_lightness(pixels: np.ndarray) -> float:
    """How much lighter the middle of uint8 [H, W] is than lungs and upper corners: about 2; -2 of a negative."""
    H, W = pixels.shape

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        part = pixels[
            int(top * H) : max(int(bottom * H), int(top * H) + 1),
            int(left * W) : max(int(right * W), int(left * W) + 1),
        ]
        return float(part.mean())

    middle = mean(0.15, 0.8, 0.44, 0.56)
    lungs = (mean(0.2, 0.55, 0.18, 0.38) + mean(0.2, 0.55, 0.62, 0.82)) / 2
    corners = (mean(0, 0.12, 0, 0.12) + mean(0, 0.12, 0.88, 1)) / 2
    return (middle - lungs) / 60 + (middle - corners) / 100
