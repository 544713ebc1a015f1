"""Findings put into the atlas: density by lobe and side in the volume, small dense things as strokes in the picture.

Volumes are float32 [Z, Y, X], density relative to water; positions in mm from the atlas centre, ordered (x, y, z).
Bit i of `bits` marks the voxels of finding i.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from llmcxr.foundation.randomness import stream
from llmcxr.sources.phantom.anatomy import Anatomy, Case, degree
from llmcxr.sources.phantom.atlas import (
    DENSITY_STEP,
    HEART,
    LEFT_LOWER,
    LEFT_UPPER,
    LUNG,
    RIGHT_LOWER,
    RIGHT_MIDDLE,
    RIGHT_UPPER,
    SPACING,
    SPINE,
    Atlas,
)
from llmcxr.sources.phantom.canvas import Canvas, Stroke, noise
from llmcxr.studies.findings import Finding

_LOBES = {
    ("right", "upper lobe"): (RIGHT_UPPER,),
    ("right", "middle lobe"): (RIGHT_MIDDLE,),
    ("right", "lower lobe"): (RIGHT_LOWER,),
    ("left", "upper lobe"): (LEFT_UPPER,),
    ("left", "lower lobe"): (LEFT_LOWER,),
    ("left", "lingula"): (LEFT_UPPER,),
    ("left", "retrocardiac"): (LEFT_LOWER,),
    ("right", "retrocardiac"): (RIGHT_LOWER,),
}
_OUTWARD = {"right": -1.0, "left": 1.0}


def _choose(
    canvas: Canvas, rng: np.random.Generator, side: str, place: str, depth: float = 90.0, clear: float = 0.0
) -> NDArray[np.float32]:
    """A place (mm) in the lung where it can be seen: in the stated lobe or zone, where the frontal lung path is long.

    `clear` mm around it there shall be lung as well.
    """
    atlas = canvas.atlas
    x, y, z = atlas.axes()
    path = atlas.lung_path[side]
    if clear:
        reach = (2 * int(clear / SPACING[2]) + 1, 2 * int(clear / SPACING[0]) + 1)
        path = np.minimum(path, 1.6 * ndimage.minimum_filter(path, reach, mode="constant"))
    lobes = _LOBES.get((side, place), LUNG[side])
    within = np.isin(atlas.labels, lobes)
    share = within.sum(1) * SPACING[1]
    low = float(np.nanmedian(atlas.dome[side]))
    hilum = atlas.hilum(side)
    zone = np.ones_like(path, bool)
    if place == "base":
        zone = (z < low + 55)[:, None] & (path > 0)
    elif place == "apex":
        zone = (z > z[np.flatnonzero(path.any(1)).max()] - 45)[:, None] & (path > 0)
        depth = 30.0
    elif place == "hilum":
        zone = (np.abs(z - hilum[2]) < 22)[:, None] & (np.abs(x - hilum[0] - 10 * _OUTWARD[side]) < 18)[None]
        depth = 40.0
    elif place == "lingula":
        zone = (z < hilum[2] - 15)[:, None] & (path > 0)
    elif place == "retrocardiac":
        zone = (np.abs(x - 40 * _OUTWARD[side]) < 22)[None] & (np.abs(z + 45) < 22)[:, None]
        depth = 30.0
    for need in (depth, 0.6 * depth, 10.0, 0.0):
        good = zone & (path >= need) & (share >= 0.35 * min(need, float(share.max()))) & (share > 0)
        if not good.any() and need < 10.0:
            good = share >= 0.8 * share.max()
        if good.any():
            break
    columns = np.flatnonzero(good)
    iz, ix = np.unravel_index(int(columns[rng.integers(len(columns))]), good.shape)
    inside = np.flatnonzero(within[iz, :, ix])
    iy = inside[int(len(inside) * rng.uniform(0.3, 0.7))]
    return np.array([x[ix], y[iy], z[iz]], np.float32)


def _sides(finding: Finding) -> tuple[str, ...]:
    return ("right", "left") if finding.side in ("both", "") else (finding.side,)


def _opacity(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    d = degree(finding)
    for side in _sides(finding):
        if finding.kind == "streaky":
            _bands(canvas, rng, side, finding.place or "base", 2 + int(2 * d), 0.5 + 0.3 * d, bit)
            continue
        patches = {"patchy": 3, "round": 1}.get(finding.kind, 1)
        for _ in range(patches):
            centre = _choose(canvas, rng, side, finding.place, 110.0)
            size = (24 + 28 * d) * rng.uniform(0.9, 1.15) * (0.7 if patches > 1 else 1.0)
            if finding.kind == "round":
                size = 11 + 12 * d
            radii = size * np.array([rng.uniform(0.9, 1.3), 1.1, rng.uniform(0.75, 1.1)])
            box, (dx, dy, dz) = canvas.box(centre, tuple(1.5 * radii))
            r = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2)
            rough = 0.06 if finding.kind == "round" else 0.2
            edge = 1.0 + rough * noise(rng, r.shape, (14, 14, 14)) - r
            weight = np.clip(edge / 0.45, 0, 1) * (0.55 + 0.4 * d)
            weight *= np.clip(1 + 0.25 * noise(rng, r.shape, (9, 9, 9)), 0.3, 1.4)
            lobes = _LOBES.get((side, finding.place), LUNG[side])
            weight = np.clip(weight, 0, 1) * np.isin(canvas.atlas.labels[box], lobes)
            canvas.fill(box, weight.astype(np.float32), 0.95, bit, 0.2)


def _bands(
    canvas: Canvas, rng: np.random.Generator, side: str, place: str, count: int, strength: float, bit: int
) -> None:
    """Plates of collapsed lung, seen edge-on from the front."""
    for _ in range(count):
        centre = _choose(canvas, rng, side, place, 80.0)
        length, deep, thick = rng.uniform(22, 42), rng.uniform(25, 45), rng.uniform(1.8, 3.2)
        tilt = rng.uniform(-0.5, 0.3) * -_OUTWARD[side]
        box, (dx, dy, dz) = canvas.box(centre, (length, deep, 0.6 * length + 6))
        bow = rng.uniform(-0.004, 0.004)
        off = dz - tilt * dx - bow * dx**2
        plate = np.clip(1.6 - np.abs(off) / thick, 0, 1)
        plate = plate * np.clip(2.5 * (1 - (dx / length) ** 2 - (dy / deep) ** 2), 0, 1)
        weight = plate * strength * canvas.atlas.lung[side][box]
        canvas.fill(box, weight.astype(np.float32), 1.0, bit, 0.2)


def _atelectasis(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    d = degree(finding)
    for side in _sides(finding):
        place = finding.place or "base"
        _bands(canvas, rng, side, place, 1 + int(round(3 * d)), 0.55 + 0.3 * d, bit)
        if finding.severity == "mild":
            continue
        # Crowded lung around the plates; with a severe one the whole lobe gives way.
        lobes = _LOBES.get((side, place), LUNG[side])
        box = canvas.atlas.lung_box[side]
        z = canvas.atlas.axes()[2][box[0]]
        low = float(np.nanmedian(canvas.atlas.dome[side]))
        fade = np.clip((low + 18 + 25 * d - z) / 25, 0, 1) if place == "base" else np.ones_like(z)
        haze = (fade * (0.10 if d < 1 else 0.42)).astype(np.float32)
        canvas.fill(box, np.isin(canvas.atlas.labels[box], lobes, kind="table") * haze[:, None, None], 1.0, bit, 0.08)


def _effusion(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """Fluid below a meniscus that climbs along the outer wall."""
    _, _, z = canvas.atlas.axes()
    for side in _sides(finding):
        k = ("right", "left").index(side)
        path = canvas.atlas.lung_path[side]
        top = float(z[np.flatnonzero((path > 40).any(1)).max()])
        # The lateral angle: where the outermost 25 mm of the lung end below.
        outer = (canvas.atlas.rim[k] < 22) & (path > 12)
        angle = float(z[np.flatnonzero(outer.any(1)).min()])
        dome, jitter = float(np.nanmedian(canvas.atlas.dome[side])), float(rng.uniform(-1, 1))
        level, climb, reach = {
            "costophrenic angle": (angle + 0.45 * (dome - angle) + 3 * jitter, 20.0, 9.0),
            "mild": (angle + 0.75 * (dome - angle) + 4 * jitter, 32.0, 13.0),
            "moderate": (dome + 14 + 6 * jitter, 42.0, 17.0),
            "severe": (dome + 0.46 * (top - dome) + 9 * jitter, 48.0, 20.0),
        }[finding.place if finding.place == "costophrenic angle" else finding.severity]
        surface = level + climb * np.exp(-canvas.atlas.rim[k] / reach)  # [Z, X]
        wet = np.clip((surface - z[:, None]) / 5.0, 0, 1).astype(np.float32)
        rows, deep, columns = canvas.atlas.lung_box[side]
        box = (slice(rows.start, int(np.flatnonzero(wet.any(1)).max()) + 1), deep, columns)
        canvas.fill(box, wet[box[0], None, columns] * canvas.atlas.lung[side][box], 1.02, bit, 0.5)


def _pneumothorax(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """Air without lung texture along the outer wall, widest at the apex; the lung's edge shows as a line."""
    d = degree(finding)
    z = canvas.atlas.axes()[2]
    for side in _sides(finding):
        k = ("right", "left").index(side)
        path = canvas.atlas.lung_path[side]
        rows = np.flatnonzero(path.any(1))
        height = np.clip((z - z[rows.min()]) / (z[rows.max()] - z[rows.min()]), 0, 1)
        width = (8 + 32 * d**1.5) * (0.25 + 0.95 * height**1.3) * rng.uniform(0.9, 1.1)
        if finding.place == "apex":
            width = width * np.clip((height - 0.55) / 0.3, 0, 1)
        box = canvas.atlas.lung_box[side]
        width = width[box[0]]
        gap = canvas.atlas.rim[k][box[0], box[2]] - width[:, None]  # [Z, X]; negative: air
        lung = canvas.atlas.lung[side][box]
        air = np.clip(0.5 - gap / 2.0, 0, 1).astype(np.float32) * (width > 1.5)[:, None]
        squeezed = np.clip(0.5 + gap / 2.0, 0, 1).astype(np.float32)
        line = np.exp(-((gap / 1.3) ** 2)).astype(np.float32) * (width > 1.5)[:, None]
        grow = np.float32(1 + 1.7 * d**2)
        canvas.volume[box] += lung * (squeezed * (grow - 1) * np.float32(0.13) + line * np.float32(0.10))[:, None, :]
        canvas.fill(box, lung * air[:, None, :], 0.0, bit, 0.5)


def _edema(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """Haze around the hila, fuller vessels."""
    d = degree(finding)
    for side in ("right", "left"):
        box = canvas.atlas.lung_box[side]
        lung = canvas.atlas.lung[side][box]
        x, y, z = (axis[part] for axis, part in zip(canvas.atlas.axes(), box[::-1], strict=True))
        hx, hy, hz = canvas.atlas.hilum(side)
        u, v, w = ((x - hx) / 62)[None, None], ((y - hy) / 90)[None, :, None], ((z - hz + 14) / 72)[:, None, None]
        haze = np.exp(-(u**2 + v**2 + w**2)) * (1 + 0.3 * noise(rng, lung.shape, (16, 30, 16)))
        canvas.volume[box] += lung * np.clip(canvas.volume[box] - 0.25, 0, 0.4) * np.float32(1.2 * d)
        weight = lung * np.clip((0.06 + 0.40 * d) * haze + 0.05 * d, 0, 0.85).astype(np.float32)
        canvas.fill(box, weight, 1.0, bit, 0.06)


def _interstitial(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """A net of thickened septa, denser towards the bases; columns in depth, so that it survives the projection."""
    d = degree(finding)
    z = canvas.atlas.axes()[2]
    low = float(np.nanmedian(canvas.atlas.dome["right"]))
    strength = 0.55 + 0.45 * np.clip((low + 100 - z) / 100, 0, 1)
    if finding.place == "base":
        strength = np.clip((low + 65 - z) / 40, 0, 1)
    elif finding.place in ("apex", "upper lobe"):
        strength = np.clip((z - low - 70) / 40, 0, 1)
    for side in _sides(finding):
        box = canvas.atlas.lung_box[side]
        lung = canvas.atlas.lung[side][box]
        net = np.zeros(lung.shape, np.float32)
        for scale in (4.2, 6.5):
            ridge = 1 - np.abs(noise(rng, lung.shape, (scale, 50, scale))) / 0.45
            net = np.maximum(net, np.clip(ridge, 0, 1))
        local = strength[box[0], None, None].astype(np.float32)
        canvas.fill(box, lung * net * (np.float32(0.10 + 0.28 * d) * local), 1.0, bit, seen=1.0)
        canvas.bits[box] |= (lung & (local > 0.3)).astype(np.uint8) << np.uint8(bit)


def _ball(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """A mass (spiculated) or nodules (smooth)."""
    d = degree(finding)
    mass = finding.name == "mass"
    for side in _sides(finding):
        for _ in range(3 if finding.kind == "multiple" else 1):
            centre = _choose(canvas, rng, side, finding.place, 100.0, 15.0 if mass else 10.0)
            radius = float((13 + 15 * d if mass else 5.5 + 7 * d) * rng.uniform(0.92, 1.08))
            box, (dx, dy, dz) = canvas.box(centre, (radius + 9,) * 3)
            r = np.sqrt(dx**2 + dy**2 + dz**2)
            rough = 1.8 if mass else 0.0
            edge = radius - r + rough * noise(rng, r.shape, (9, 9, 9))
            weight = np.clip(edge / 3.0 + 0.5, 0, 1) * canvas.atlas.lung[side][box]
            canvas.fill(box, weight.astype(np.float32), 1.05 if mass else 1.1, bit)


def _granuloma(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """Calcified spots: in the lung, or nodes at the hilum or beside the trachea."""
    count = {"multiple": 4, "nodes": 3}.get(finding.kind, 1) + int(rng.integers(2))
    sides = _sides(finding)
    for side in sides:
        for _ in range(count if len(sides) == 1 else max(1, count - 1)):
            place, radius = finding.place, float(rng.uniform(2.0, 3.8))
            if finding.kind == "nodes" or place in ("hilum", "mediastinum"):
                centre = np.asarray(canvas.atlas.hilum(side) + rng.normal(0, 1, 3) * (9, 8, 13), np.float32)
                if place == "mediastinum":
                    centre = np.asarray((0, 5, 25) + rng.normal(0, 1, 3) * (12, 8, 18), np.float32)
                radius = float(rng.uniform(2.5, 4.5))
            else:
                centre = _choose(canvas, rng, side, place, 90.0, 6.0)
            canvas.strokes.append(Stroke(centre[None], radius, 4.5, bit))


def _aorta(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """A wide, winding aorta: a prominent knob, a descending part that swings to the left; a calcified rim if asked."""
    d = degree(finding)
    wide = 15 + 4 * d
    bulge = 5 + 13 * d
    t = np.linspace(0, 1, 24)
    # Up from the heart, over the arch to the back, down along the left of the spine.
    ascending = np.stack([-12 - (4 + 9 * d) * np.sin(np.pi * t), 26 - 2 * t, -34 + 52 * t], -1)
    arch = np.stack([-12 + 30 * t, 24 - 66 * t, 18 + (8 + 8 * d) * np.sin(np.pi * t)], -1)
    down = np.stack([18 + bulge * np.sin(np.pi * t**0.8), -42 - 12 * np.sin(np.pi * t), 18 - 118 * t], -1)
    for line, r in ((ascending, wide), (arch, wide), (down, wide - 2)):
        low, high = line.min(0) - r - 4, line.max(0) + r + 4
        box, (dx, dy, dz) = canvas.box((low + high) / 2, tuple((high - low) / 2))
        nearest = np.full(np.broadcast_shapes(dx.shape, dy.shape, dz.shape), 1e9, np.float32)
        for p in line - (low + high) / 2:
            np.minimum(nearest, (dx - p[0]) ** 2 + (dy - p[1]) ** 2 + (dz - p[2]) ** 2, out=nearest)
        weight = np.clip((r - np.sqrt(nearest)) / 2.5 + 0.5, 0, 1)
        lung = (canvas.atlas.labels[box] >= 10) | (canvas.volume[box] < 0.9)
        canvas.fill(box, (weight * lung).astype(np.float32), 1.04, bit)
        canvas.bits[box] |= (weight > 0.5).astype(np.uint8) << np.uint8(bit)
    if finding.kind == "calcified":
        angle = np.linspace(-0.9, 1.5, 24)
        knob = np.stack([10 + 14 * np.cos(angle), np.full(24, -25.0), 14 + 14 * np.sin(angle)], -1)
        canvas.strokes.append(Stroke(knob.astype(np.float32), 1.2 + 0.7 * d, 7.0, bit))


def _hernia(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """Stomach behind the heart: soft wall, fluid, air above a level."""
    d = degree(finding)
    radius = 20 + 20 * d
    centre = np.array([14 + 6 * rng.uniform(-1, 1), -18, -66 + 0.5 * radius], np.float32)
    box, (dx, dy, dz) = canvas.box(centre, (1.3 * radius, radius, radius))
    r = np.sqrt((dx / 1.2) ** 2 + dy**2 + dz**2)
    keep = canvas.atlas.labels[box] != SPINE
    canvas.fill(box, (np.clip((radius - r) / 3 + 0.5, 0, 1) * keep).astype(np.float32), 1.03, bit)
    gas = np.clip((0.82 * radius - r) / 4 + 0.5, 0, 1) * np.clip((dz - 0.15 * radius) / 2 + 0.5, 0, 1) * keep
    canvas.fill(box, (gas * (0.3 + 0.5 * d)).astype(np.float32), 0.0, bit)


def _device(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """Metal and plastic: pacemaker, port or line, sternal wires, clips, tube, valve."""

    def stroke(points: list, radius: float, density: float, smooth: bool = True, filled: bool = False) -> None:
        line = np.array(points, np.float32)
        if smooth and len(line) > 2:
            t = np.arange(len(line))
            dense = np.linspace(0, len(line) - 1, 16 * len(line))
            line = ndimage.gaussian_filter1d(
                np.stack([np.interp(dense, t, line[:, i]) for i in range(3)], -1), 7, axis=0, mode="nearest"
            )
        canvas.strokes.append(Stroke(line.astype(np.float32), radius, density, bit, filled))

    side = finding.side if finding.side in ("left", "right") else ("left" if finding.kind == "pacemaker" else "right")
    s = _OUTWARD[side]
    j = lambda width: float(rng.uniform(-width, width))  # noqa: E731
    vein = [[s * 60, 45, 85 + j(6)], [s * 32, 40, 84], [s * 10 - 8, 30, 70], [-24, 22, 40]]
    if finding.kind == "pacemaker":
        cx, cz = s * (92 + j(8)), 62 + j(8)
        angle = np.linspace(0, 2 * np.pi, 25)
        can = [[cx + 20 * np.cos(t), 95, cz + 17 * np.sin(t)] for t in angle]
        stroke(can, 1.5, 30.0, smooth=False, filled=True)
        head = [[cx + 14 * np.cos(t), 95, cz + 16 + 5 * np.sin(t)] for t in angle]
        stroke(head, 1.0, 10.0, smooth=False, filled=True)
        head = [[cx - s * 12, 90, cz + 18], [s * 72, 70, 86]]
        stroke(
            [*head, *vein, [-30, 20, -5], [-14, 22, -52 + j(5)], [22, 34, -70 + j(5)], [44 + j(6), 40, -66 + j(4)]],
            1.0,
            22.0,
        )
        if rng.uniform() < 0.7:
            stroke([*head, *vein, [-34, 20, -8], [-40, 26, -28], [-28, 34, -22 + j(4)]], 1.0, 22.0)
    elif finding.kind == "sternal wires":
        for i in range(6):
            cx, cz = -2 + j(3), 42 - 22 * i + j(3)
            stroke(
                [
                    [cx - 9, 118, cz - 4],
                    [cx - 4, 122, cz + 5],
                    [cx + 5, 122, cz + 4],
                    [cx + 9, 118, cz - 3],
                    [cx, 120, cz - 6],
                    [cx - 9, 118, cz - 4],
                ],
                0.7,
                40.0,
            )
    elif finding.kind == "clips":
        centre = _choose(
            canvas, rng, side, finding.place if finding.place in ("hilum", "base", "upper lobe") else "hilum"
        )
        if finding.place == "abdomen":
            centre = np.array([-48, 20, -122], np.float32)
        if finding.place == "mediastinum":
            centre = np.array([12, 30, 0], np.float32)
        for _ in range(5):
            p, v = centre + rng.normal(0, 9, 3), rng.normal(0, 1, 3)
            v[1] = 0
            stroke([p, p + 7 * v / np.linalg.norm(v)], 1.0, 40.0)
    elif finding.kind == "tube":
        stroke([[-6 + j(3), 20, 135], [-7, 14, 100], [-7 + j(2), 8, 48 + j(12)]], 2.2, 7.0)
    elif finding.kind == "valve":
        angle = np.linspace(0, 2 * np.pi, 25)
        stroke([[4 + 12 * np.cos(t), 25, -30 + 9 * np.sin(t) + 5 * np.cos(t)] for t in angle], 1.3, 25.0, smooth=False)
    else:  # line or port
        tail = [-26 + j(3), 20, -8 + j(14)]
        if finding.kind == "port" or (finding.kind == "" and rng.uniform() < 0.5):
            cx, cz = s * (70 + j(8)), 48 + j(8)
            angle = np.linspace(0, 2 * np.pi, 25)
            for r in (2.0, 5.0, 8.5):
                stroke([[cx + r * np.cos(t), 100, cz + r * np.sin(t)] for t in angle], 1.6, 14.0, smooth=False)
            stroke([[cx, 95, cz + 8], [s * 58, 70, 86], *vein[1:], tail], 1.1, 13.0)
        else:
            stroke([[s * 150, 0, 66], [s * 120, 10, 88], [s * 88, 35, 92], *vein, tail], 1.1, 13.0)


def _heart(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """The warp enlarges the heart; the right atrium is rounded, so that no enlarged vessels stand out of its border."""
    box, (dx, dy, dz) = canvas.box(np.array([-8, 15, -60], np.float32), (44.0, 44.0, 40.0))
    r = np.sqrt((dx / 38) ** 2 + (dy / 40) ** 2 + (dz / 36) ** 2)
    weight = np.clip((1 - r) * 14 + 0.5, 0, 1) * (canvas.volume[box] < 1.04)
    canvas.fill(box, weight.astype(np.float32), 1.04, bit)
    canvas.mark(canvas.atlas.labels == HEART, bit)


def _lungs(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    canvas.mark(canvas.atlas.labels >= 10, bit)


def _dome(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    """The dome is lifted by the warp; the mask shows the raised part below the lung."""
    _, _, z = canvas.atlas.axes()
    for side in _sides(finding):
        dome = canvas.atlas.dome[side]
        dome = np.where(dome < -60, dome, np.nan)  # not the columns that first meet the lung beside the heart
        band = (z[:, None] < dome[None]) & (z[:, None] > dome[None] - 45)
        canvas.mark(np.broadcast_to(band[:, None], canvas.bits.shape) & (canvas.atlas.labels != 0), bit)


def _spine(canvas: Canvas, rng: np.random.Generator, finding: Finding, bit: int) -> None:
    canvas.mark(canvas.atlas.labels == SPINE, bit)


DRAW: dict[str, Callable[[Canvas, np.random.Generator, Finding, int], None]] = {
    "granuloma": _granuloma,
    "opacity": _opacity,
    "atelectasis": _atelectasis,
    "cardiomegaly": _heart,
    "hypoinflation": _lungs,
    "hyperinflation": _lungs,
    "tortuous aorta": _aorta,
    "pleural effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "elevated diaphragm": _dome,
    "pulmonary edema": _edema,
    "interstitial markings": _interstitial,
    "mass": _ball,
    "nodule": _ball,
    "hiatal hernia": _hernia,
    "scoliosis": _spine,
    "support device": _device,
}
# Fluid and air displace what was drawn before them; haze comes before solid things.
_ORDER = {name: i for i, name in enumerate(("pulmonary edema", "interstitial markings"))} | {
    "pleural effusion": 90,
    "pneumothorax": 91,
}


def tissue(atlas: Atlas, anatomy: Anatomy) -> NDArray[np.float32]:
    """Densities [Z, Y, X] of this patient before any finding: lung, vessels and bone vary from person to person."""
    levels = np.arange(256, dtype=np.float32) * np.float32(DENSITY_STEP)
    lung = np.where(levels < 0.3, levels * anatomy.lung, 0.3 * anatomy.lung + (levels - 0.3) * anatomy.vessels)
    body = np.where(levels > 1.15, 1.15 + (levels - 1.15) * anatomy.bone, levels)
    volume = body.astype(np.float32)[atlas.density]
    both = atlas.lung["right"] | atlas.lung["left"]
    volume[both] = lung.astype(np.float32)[atlas.density[both]]
    return volume


def draw(atlas: Atlas, case: Case) -> Canvas:
    """Put the findings of a case into the atlas."""
    canvas = Canvas(atlas, tissue(atlas, case.anatomy), np.zeros(atlas.density.shape, np.uint8))
    order = sorted(range(len(case.findings)), key=lambda i: (_ORDER.get(case.findings[i].name, 50), i))
    for i in order:
        finding = case.findings[i]
        DRAW[finding.name](canvas, stream(case.seed, "drawing", i, finding.name), finding, i)
    return canvas
