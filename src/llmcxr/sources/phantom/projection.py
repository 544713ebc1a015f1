"""From volume to radiograph: sample the patient's space, sum along the rays, expose.

Z, Y, X: voxels of the patient's space (head-foot, depth, width); N: image size. Pictures are uint8 [N, N], bone white,
air black, the patient's right at the image's left. Nothing here looks at the findings, and the window is fixed: a
finding changes the picture only where its density lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.sources.phantom.anatomy import Anatomy, Case, from_atlas, to_atlas
from llmcxr.sources.phantom.atlas import SPACING, Atlas
from llmcxr.sources.phantom.canvas import Canvas, Stroke, interpolation
from llmcxr.sources.phantom.drawing import draw

FIELD = 316.0  # mm of the patient that the picture shows
_HEIGHT = -48.0  # mm from the lungs' middle to the picture's centre
_DEPTH = (-140.0, 140.0)
_STEP = 3.5  # mm between samples along a ray
_SOURCE = 1800.0  # mm from the X-ray focus to the detector
_KNOTS = 33  # of the coarse grid on which the warp is computed
_SLAB = 16  # rows at a time, so that the grid stays in the processor's cache
_K = 0.0078  # attenuation per mm of water
_WINDOW = (0.36, 0.93)  # of 1 - transmission
_MASK_SIZE = 128
RENDER_VERSION = 2  # raise it whenever pictures of the same case change


@dataclass(frozen=True)
class Rendering:
    """image: uint8 [N, N]. masks: uint8 [N, N], bit i set where finding i of the case lies."""

    image: NDArray[np.uint8]
    masks: NDArray[np.uint8]


def _rays(anatomy: Anatomy, atlas: Atlas, depth: int) -> torch.Tensor:
    """Sampling positions in the atlas in grid_sample's units: [knots z, depth, knots x * 3], coarse in z and x."""
    half = FIELD / 2
    z = np.linspace(half, -half, _KNOTS, dtype=np.float32)[:, None, None]
    y = np.linspace(*_DEPTH, 25, dtype=np.float32)[None, :, None]
    x = np.linspace(-half, half, _KNOTS, dtype=np.float32)[None, None, :]
    narrow = 1 - (130 - y) / _SOURCE  # rays converge towards the focus behind the patient
    points = np.stack(np.broadcast_arrays(x * narrow, y, (z + _HEIGHT) * narrow), -1).astype(np.float32)
    size = np.array(atlas.density.shape[::-1], np.float32)
    index = (to_atlas(anatomy, points) - atlas.origin) / np.array(SPACING, np.float32)
    grid = torch.from_numpy((2 * index / (size - 1) - 1).reshape(_KNOTS, 25, _KNOTS * 3))
    return torch.from_numpy(interpolation(depth, 25)) @ grid


def _to_pixels(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights that interpolate the coarse grid at pixel centres: [size, knots] for rows, [knots * 3, size * 3] for columns."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size * (_KNOTS - 1)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(_KNOTS, dtype=np.float32)), 0, 1)
    return torch.from_numpy(weights), torch.from_numpy(np.kron(weights.T, np.eye(3, dtype=np.float32)))


def _sample(volume: torch.Tensor, rays: torch.Tensor, size: int, mode: str) -> Iterator[torch.Tensor]:
    """Samples of `volume` [Z, Y, X] along the rays, a slab of rows at a time: [rows, depth, size]."""
    rows, columns = _to_pixels(size)
    depth = rays.shape[1]
    for begin in range(0, size, _SLAB):
        slab = rows[begin : begin + _SLAB] @ rays.reshape(_KNOTS, -1)
        grid = (slab.reshape(-1, _KNOTS * 3) @ columns).reshape(1, -1, depth, size, 3)
        yield F.grid_sample(volume[None, None], grid, mode=mode, padding_mode="border", align_corners=True)[0, 0]


def _path(canvas: Canvas, rays: torch.Tensor, size: int) -> NDArray[np.float32]:
    """mm of water that each ray crosses, [N, N]."""
    step = (_DEPTH[1] - _DEPTH[0]) / (rays.shape[1] - 1)
    return torch.cat(
        [s.sum(1) for s in _sample(torch.from_numpy(canvas.volume), rays, size, "bilinear")]
    ).numpy() * np.float32(step)


def _project_bits(canvas: Canvas, rays: torch.Tensor) -> NDArray[np.uint8]:
    """Bits that any voxel along the ray carries, [128, 128]."""
    if not canvas.bits.any():
        return np.zeros((_MASK_SIZE, _MASK_SIZE), np.uint8)
    bits = torch.from_numpy(canvas.bits.astype(np.float32))
    slabs = _sample(bits, rays[:, ::2], _MASK_SIZE, "nearest")
    return np.concatenate([np.bitwise_or.reduce(s.numpy().astype(np.uint8), axis=1) for s in slabs])


def _pixels(anatomy: Anatomy, stroke: Stroke, size: int) -> NDArray[np.float32]:
    """Where the points of a stroke fall in the picture, in pixels (x, y), [P, 2]."""
    places = from_atlas(anatomy, stroke.points)
    narrow = 1 - (130 - places[:, 1]) / _SOURCE
    column = (places[:, 0] / narrow / FIELD + 0.5) * size
    row = (0.5 - (places[:, 2] / narrow - _HEIGHT) / FIELD) * size
    return np.stack([column, row], -1)


def _draw_strokes(anatomy: Anatomy, strokes: list[Stroke], size: int, masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """mm of water that the strokes add, [N, N]; their bits are set in `masks`."""
    added = np.zeros((size, size), np.float32)
    fine = max(1, 1024 // size)
    for stroke in strokes:
        line = _pixels(anatomy, stroke, size)
        radius = stroke.radius / FIELD * size
        low = np.clip(np.floor(line.min(0) - radius - 3).astype(int), 0, size)
        high = np.clip(np.ceil(line.max(0) + radius + 3).astype(int), 0, size)
        if (high <= low).any():
            continue
        width, height = (int(v) for v in high - low)
        canvas = Image.new("L", (width * fine, height * fine))
        pen = ImageDraw.Draw(canvas)
        points = [((px - low[0]) * fine, (py - low[1]) * fine) for px, py in line.tolist()]
        r = radius * fine
        if stroke.filled:
            pen.polygon(points, fill=255)
        if len(points) > 1:
            pen.line(points, fill=255, width=max(1, round(2 * r)), joint="curve")
        else:
            (px, py) = points[0]
            pen.ellipse((px - r, py - r, px + r, py + r), fill=255)
        cover = np.asarray(canvas, np.float32).reshape(height, fine, width, fine).mean((1, 3)) / 255
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        added[box] += cover * np.float32(stroke.density * stroke.radius * 1.6)
        masks[box] |= (ndimage.maximum_filter(cover, 3) > 0.04).astype(np.uint8) << np.uint8(stroke.bit)
    return added


def _breasts(anatomy: Anatomy, size: int) -> NDArray[np.float32]:
    """mm of soft tissue of the breasts, [N, N]."""
    thick, radius, height, apart = anatomy.breast
    if thick == 0:
        return np.zeros((size, size), np.float32)
    at = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * FIELD
    x, z = at[None] - anatomy.shift[0], -at[:, None] + _HEIGHT - anatomy.shift[1]
    out = np.zeros((size, size), np.float32)
    for side in (-1, 1):
        u = (x - side * apart * anatomy.size[0]) / radius
        v = (z - height) / radius
        fall = v > 0  # hangs: fades out above, ends with an edge below
        v = np.where(fall, v / 1.8, v / 0.8)
        bulge = np.clip(1 - u**2 - v**2, 0, None)
        out += thick * bulge ** np.where(fall, 1.5 - 0.9 * np.clip(1 - v, 0, 1) ** 4, 0.6)
    return out


def _expose(path: NDArray[np.float32], anatomy: Anatomy, rng: np.random.Generator) -> NDArray[np.uint8]:
    size = len(path)
    pixel = FIELD / size
    shown = 1 - np.exp(-_K * path)
    # Edge enhancement as in computed radiography, over 7 mm, so the same at every resolution.
    shown = shown + 0.55 * (shown - ndimage.gaussian_filter(shown, 7.0 / pixel, mode="nearest", truncate=3.0))
    low, high = _WINDOW
    grey = (shown - low) / (high - low)
    grey = 0.5 + anatomy.contrast * (grey - 0.5) + 0.5 * (anatomy.exposure - 1)
    grain = rng.standard_normal((size, size)).astype(np.float32)
    grain = grain * 0.7 + ndimage.gaussian_filter(grain, 0.7, mode="nearest") * 0.7
    grey = grey + 0.011 * anatomy.grain * (size / 256) ** 0.5 * grain * (0.6 + 0.6 * np.clip(grey, 0, 1))
    grey = np.where(grey > 0.85, 0.85 + 0.15 * np.tanh((grey - 0.85) / 0.15), grey)
    grey = np.where(grey < 0.08, 0.08 * np.exp(np.minimum((grey - 0.08) / 0.08, 0)), grey)
    return np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread sums in one order: the same bits on every number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def render(atlas: Atlas, case: Case, image_size: int) -> Rendering:
    """Project a case to a square picture; the same case gives the same patient at any `image_size` (a multiple of 32).

    Raises `UserError` for another size or for more than 8 findings.
    """
    if image_size < 32 or image_size % 32:
        raise UserError(
            f"the phantom cannot be drawn at {image_size} pixels a side: set image_tokenizer.architecture.image_size to a multiple of 32."
        )
    if len(case.findings) > 8:
        raise UserError(f"{len(case.findings)} findings in one image; the masks hold 8. Leave some out.")
    with _one_thread():
        canvas = draw(atlas, case)
        rays = _rays(case.anatomy, atlas, round((_DEPTH[1] - _DEPTH[0]) / _STEP) + 1)
        path = _path(canvas, rays, image_size)
        bits = _project_bits(canvas, rays)
    masks = np.asarray(Image.fromarray(bits).resize((image_size, image_size), Image.Resampling.NEAREST)).copy()
    path = path + _breasts(case.anatomy, image_size) + _draw_strokes(case.anatomy, canvas.strokes, image_size, masks)
    return Rendering(_expose(path, case.anatomy, stream(case.seed, "grain", image_size)), masks)
