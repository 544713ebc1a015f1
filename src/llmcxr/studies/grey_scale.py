"""What a radiograph is read to, and the one rule for grey values whose scale no file states.

Pixels: float32 [H, W] in [0, 1], bone white (towards 1) and air black. Letters: H and W the file's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_PIXELS = 2**26  # a film of 14 x 17 inches at 50 micrometres has 61 million
FAR_OUT = 0.001  # share of pixels at either end that no range is stretched for: hot pixels, dead columns, metal

# How a grey scale was found.
RANGE = "darkest to brightest"  # by `value_range`


@dataclass(frozen=True)
class Radiograph:
    """One image as read, with what had to be decided to read it."""

    name: str  # the file's path, for messages
    pixels: np.ndarray  # float32 [H, W] in [0, 1]
    grey_scale: str  # how the grey scale was found, in words that can be counted over many images
    remarks: tuple[str, ...] = ()  # what else was done or found: orientation, padding, loss, faults of the header

    @property
    def size(self) -> str:
        """Height and width, for messages."""
        return " x ".join(map(str, self.pixels.shape))


def value_range(values: np.ndarray) -> tuple[float, float]:
    """(black, white) of values (any shape, finite) of which nothing else is known: all but the thousandth at either
    end.

    Continuous in the values, unlike a guess at the number of bits. All values count where the rest is constant.
    """
    if not values.size:
        return 0.0, 0.0
    flat, k = values.ravel(), int(values.size * FAR_OUT)
    ends = np.partition(flat, (k, flat.size - 1 - k))
    low, high = float(ends[k]), float(ends[flat.size - 1 - k])
    return (low, high) if high > low else (float(flat.min()), float(flat.max()))


def stretch(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Values to float32 in [0, 1]: `black` and below are 0, `white` and above 1; all 0 where the two are the same."""
    if not white > black:
        return np.zeros(values.shape, dtype=np.float32)
    scaled: Any = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    return np.clip((scaled - black) / (white - black), 0, 1).astype(np.float32, copy=False)


def sample(values: np.ndarray) -> np.ndarray:
    """About four million of the values [H, W], evenly spread: enough to know their range, and quick to sort."""
    step = max(1, int((values.size / 2**22) ** 0.5))
    return values[::step, ::step]
