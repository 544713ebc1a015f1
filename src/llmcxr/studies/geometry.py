"""From the file's height and width to the network's square.

Letters: H and W the image's height and width, S the side of the square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from llmcxr.foundation.settings import Settings, setting

_BLACK = 0.04  # at most, of a border's pixels, but for
_BRIGHT = 0.005  # this share of a row or column
_LEAST = 0.25  # of height and width that a cut leaves: where less would be left, the image is dark, not bordered


@dataclass(frozen=True)
class Geometry(Settings):
    """How images become squares. It belongs to a model: what it was trained on is what it has to be shown."""

    square: Literal["crop", "pad"] = setting(
        "crop", "crop: shorter side to the size, centre square kept (the paper's); pad: whole image, black beside it"
    )
    cut_borders: bool = setting(False, "cut black borders (collimator, letter box) first")


CENTRE_CROP = Geometry()  # the paper's


def inside_borders(pixels: np.ndarray) -> tuple[slice, slice]:
    """(rows, columns) of [H, W] in [0, 1] without black ones at its edges; all where hardly any would be left."""
    bright = pixels > _BLACK
    box = []
    for axis in (1, 0):
        full = np.flatnonzero(bright.mean(axis=axis) > _BRIGHT)
        if not full.size or full[-1] + 1 - full[0] < _LEAST * pixels.shape[1 - axis]:
            return slice(None), slice(None)
        box.append(slice(int(full[0]), int(full[-1]) + 1))
    return box[0], box[1]


def _resize(pixels: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.clip(
        np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box=box)), 0, 1
    )  # Lanczos overshoots at edges


def to_square(pixels: np.ndarray, size: int, geometry: Geometry = CENTRE_CROP) -> np.ndarray:
    """[H, W] in [0, 1] to float32 [size, size] in [-1, 1].

    `crop`: the shorter side is resized to `size` (Lanczos) and the centre square kept. The square is resampled
    directly from its box in the input, so both axes have exactly the same scale and nothing outside the crop is
    computed. `pad`: the longer side is resized to `size`, and the rest is black, the same on both sides (but for an
    odd pixel).
    """
    if geometry.cut_borders:
        pixels = pixels[inside_borders(pixels)]
    H, W = pixels.shape
    if H == W == size:
        square = pixels.astype(np.float32)
    elif geometry.square == "crop" or H == W:
        side = min(H, W)
        square = _resize(pixels, (size, size), ((W - side) / 2, (H - side) / 2, (W + side) / 2, (H + side) / 2))
    else:
        scale = size / max(H, W)
        # Whole pixels of the square: at each edge less than one of them goes, so that both axes keep their scale.
        h, w = max(1, int(H * scale + 1e-6)), max(1, int(W * scale + 1e-6))
        top, left = max(0.0, (H - h / scale) / 2), max(0.0, (W - w / scale) / 2)
        square = np.zeros((size, size), dtype=np.float32)
        inside = square[(size - h) // 2 :, (size - w) // 2 :][:h, :w]
        inside[:] = _resize(pixels, (w, h), (left, top, W - left, H - top))
    return square * np.float32(2) - np.float32(1)


def lost(H: int, W: int, geometry: Geometry) -> float:
    """Share of an image's area that the square leaves out."""
    return 1 - min(H, W) / max(H, W) if geometry.square == "crop" else 0.0
