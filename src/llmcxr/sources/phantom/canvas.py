"""The atlas while findings are put into it: its volume, marks of the findings, strokes, and smooth noise.

Volumes are float32 [Z, Y, X], density relative to water; positions in mm from the atlas centre, ordered (x, y, z).
Bit i of `bits` marks the voxels of finding i.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from llmcxr.sources.phantom.atlas import SPACING, Atlas


@dataclass
class Stroke:
    """A line (or with one point a ball) drawn in the picture: places in the atlas [N, 3], radius in mm, density."""

    points: NDArray[np.float32]
    radius: float
    density: float
    bit: int
    filled: bool = False  # the area within the line, too


@dataclass
class Canvas:
    """The atlas while findings are put into it."""

    atlas: Atlas
    volume: NDArray[np.float32]
    bits: NDArray[np.uint8]
    strokes: list[Stroke] = field(default_factory=list)

    def box(
        self, centre: NDArray, reach: tuple[float, float, float]
    ) -> tuple[tuple[slice, slice, slice], list[NDArray]]:
        """Slices [Z, Y, X] around `centre`, and the distances (mm) from it along x, y, z, ready to broadcast."""
        slices, steps = [], []
        for axis, r, c in zip(self.atlas.axes(), reach, centre, strict=True):
            lo, hi = np.searchsorted(axis, (c - r, c + r))
            slices.append(slice(int(lo), max(int(hi), int(lo) + 1)))
            steps.append(axis[slices[-1]] - np.float32(c))
        dx, dy, dz = steps
        return (slices[2], slices[1], slices[0]), [dx[None, None, :], dy[None, :, None], dz[:, None, None]]

    def fill(self, box: tuple, weight: NDArray, density: float, bit: int, seen: float = 0.25) -> None:
        """Blend `volume[box]` to `density` by `weight` (0..1); it is marked where the weight exceeds `seen`."""
        part = self.volume[box]
        part += weight * (np.float32(density) - part)
        self.bits[box] |= (weight > seen).astype(np.uint8) << np.uint8(bit)

    def mark(self, region: NDArray, bit: int) -> None:
        self.bits |= region.astype(np.uint8) << np.uint8(bit)


@functools.lru_cache(maxsize=256)
def interpolation(n: int, knots: int) -> NDArray[np.float32]:
    """Weights [n, knots] of linear interpolation from `knots` values to n, end to end."""
    at = np.linspace(0, knots - 1, n, dtype=np.float32)
    return np.clip(1 - np.abs(at[:, None] - np.arange(knots, dtype=np.float32)), 0, 1)


def noise(rng: np.random.Generator, shape: tuple[int, ...], scale: tuple[float, float, float]) -> NDArray[np.float32]:
    """Smooth noise of unit variance [Z, Y, X]; `scale` is the blob size in mm along x, y, z. It does not wrap."""
    size = [max(2, int(np.ceil(n * s / m)) + 1) for n, s, m in zip(shape, SPACING[::-1], scale[::-1], strict=True)]
    coarse = rng.standard_normal(size).astype(np.float32)
    tz, ty, tx = (torch.from_numpy(interpolation(n, k)) for n, k in zip(shape, size, strict=True))
    fine = torch.from_numpy(coarse) @ tx.T  # linear interpolation, one axis after the other
    fine = (tz @ (ty @ fine).flatten(1)).reshape(shape)
    return fine.numpy() * np.float32(1.8)
