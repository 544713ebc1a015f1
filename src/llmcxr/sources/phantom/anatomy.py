"""One patient: random pose, build, inflation, heart and bones, as an analytic warp from the patient's space to the atlas.

Positions are (x, y, z) in mm: x to the patient's left, y to the front, z up, from the middle of the lungs. A warp maps
the place in the patient to the place in the atlas from which it is made, so pictures of any resolution agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmcxr.foundation.randomness import stream
from llmcxr.studies.findings import Finding

Points = NDArray[np.float32]  # [..., 3]

_HEART = (14.0, 14.0, -56.0)  # centre of the atlas heart, mm
_HEART_REACH = (66.0, 52.0)  # half width and half height
_HEART_OUTER = 1.62  # in half widths: where lung and wall are left alone
ATLAS_CTR = 0.535  # cardiothoracic ratio of the atlas as seen from the front
_LUNG_TOP, _DOME = 55.0, -78.0  # between them the lung is stretched


@dataclass(frozen=True)
class Anatomy:
    """Numbers that make a patient; lengths in mm, angles in radians, ratios relative to the atlas."""

    shift: tuple[float, float]  # of the picture, to the image's right and up
    roll: float
    yaw: float
    pitch: float
    size: tuple[float, float, float]  # width, depth, height
    taper: float  # relative widening of the rib cage per 100 mm downwards
    fat: float  # thickness of the body's shell
    inflation: float  # mm by which the domes stand lower
    heart: float  # cardiothoracic ratio aimed at
    spine: tuple[float, float]  # side bend: mm to the left at its apex, phase
    lift: tuple[float, float]  # mm by which the right and left dome stand higher
    flattening: float  # mm by which both domes lose height in their middle
    waves: tuple[tuple[float, ...], ...]  # smooth personal variation
    lung: float  # density of the lung tissue
    vessels: float
    bone: float
    breast: tuple[float, float, float, float]  # thickness (0: none), radius, height, distance from the midline
    exposure: float
    contrast: float
    grain: float


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random normal adult."""
    n, u = rng.normal, rng.uniform
    waves = tuple(
        tuple(float(v) for v in (*n(0, 1.6, 3), *(n(0, 1, 3) * 2 * np.pi / 330), u(0, 2 * np.pi))) for _ in range(7)
    )
    female = u() < 0.5
    return Anatomy(
        shift=(float(n(0, 5)), float(n(0, 6))),
        roll=float(np.clip(n(0, 0.02), -0.05, 0.05)),
        yaw=float(np.clip(n(0, 0.035), -0.08, 0.08)),
        pitch=float(np.clip(n(0, 0.05), -0.12, 0.12)),
        size=(float(u(0.93, 1.06)), float(u(0.85, 1.12)), float(u(0.97, 1.07))),
        taper=float(n(0, 0.025)),
        fat=float(u(0.7, 1.55)),
        inflation=float(np.clip(n(20, 4), 11, 29)),
        heart=float(u(0.385, 0.455)),
        spine=(float(np.clip(n(0, 2.0), -4, 4)), float(u(-0.6, 0.6))),
        lift=(float(u(-3, 7)), float(u(-4, 4))),
        flattening=0.0,
        waves=waves,
        lung=float(u(0.85, 1.2)),
        vessels=float(u(0.85, 1.2)),
        bone=float(u(0.8, 1.2)),
        breast=(float(u(12, 45)) if female else 0.0, float(u(55, 75)), float(u(-105, -70)), float(u(72, 92))),
        exposure=float(np.clip(n(1, 0.05), 0.88, 1.12)),
        contrast=float(np.clip(n(1, 0.06), 0.85, 1.15)),
        grain=float(u(0.6, 1.4)),
    )


@dataclass(frozen=True)
class Case:
    """What one picture shows: a patient and findings with everything stated. `seed` fixes all randomness."""

    seed: int
    anatomy: Anatomy
    findings: tuple[Finding, ...]


_CTR = {"borderline": 0.505, "mild": 0.54, "moderate": 0.585, "severe": 0.64}
_DEGREE = {"mild": 0.4, "moderate": 0.7, "severe": 1.0, "": 0.6}
_COMMON = ("mild", "mild", "moderate")  # what an unstated severity may be
_UNGRADED = ("granuloma", "support device")
_ONE_SIDE = ("elevated diaphragm", "pneumothorax", "pleural effusion", "mass", "nodule", "granuloma")
_ANY_SIDE = ("opacity", "atelectasis")
_BOTH_SIDES = ("interstitial markings", "pulmonary edema")
_DEVICE_SIDE = {"pacemaker": "left", "central line": "right", "port": "right", "clips": "right"}


def degree(finding: Finding) -> float:
    """0.4, 0.7 or 1.0 for mild, moderate or severe; 0.6 where there are no degrees."""
    return _DEGREE[finding.severity]


def resolve(finding: Finding, rng: np.random.Generator) -> Finding:
    """State what was not stated (side, severity), as the picture has to show something."""
    severity, side, kind = finding.severity, finding.side, finding.kind
    chosen_severity, chosen_side = _COMMON[rng.integers(3)], ("right", "left", "both")[rng.integers(3)]
    one_side = ("right", "left")[rng.integers(2)]
    if finding.name in _UNGRADED:
        severity = ""
    elif not severity:
        severity = chosen_severity
    if finding.name == "support device":
        kind = kind or "central line"
        side = side or _DEVICE_SIDE.get(kind, "")
    elif finding.name == "scoliosis":
        side = side if side in ("left", "right") else one_side
    elif not side:
        if finding.place == "middle lobe":
            side = "right"
        elif finding.place in ("lingula", "retrocardiac"):
            side = "left"
        elif finding.name in _BOTH_SIDES or (finding.kind == "multiple" and finding.name in _ONE_SIDE):
            side = "both"
        elif finding.name in _ONE_SIDE:
            side = one_side
        elif finding.name in _ANY_SIDE:
            side = chosen_side
    return dataclasses.replace(finding, severity=severity, side=side, kind=kind)


def case_for(findings: Sequence[Finding], seed: int) -> Case:
    """The case of `seed` with the given findings; the patient is the same whatever the findings."""
    anatomy = draw_anatomy(stream(seed, "anatomy"))
    resolved = []
    for i, finding in enumerate(findings):
        rng = stream(seed, "finding", i, finding.name)
        finding = resolve(finding, rng)
        resolved.append(finding)
        d, jitter = degree(finding), float(rng.uniform(-1, 1))
        change = dataclasses.replace
        if finding.name == "cardiomegaly":
            target = _CTR["borderline"] if finding.kind == "borderline" else _CTR[finding.severity]
            anatomy = change(anatomy, heart=target + 0.012 * jitter)
        elif finding.name == "hyperinflation":
            anatomy = change(
                anatomy, inflation=30 + 18 * d + 3 * jitter, flattening=4 + 12 * d, lung=anatomy.lung * (1 - 0.3 * d)
            )
            anatomy = change(
                anatomy, lift=(0.0, 0.0), heart=anatomy.heart if anatomy.heart > 0.46 else anatomy.heart * (1 - 0.1 * d)
            )
        elif finding.name == "hypoinflation":
            anatomy = change(anatomy, inflation=6 - 26 * d - 3 * jitter, lung=anatomy.lung * (1 + 0.35 * d))
        elif finding.name == "elevated diaphragm":
            height = 14 + 30 * d + 3 * jitter
            right, left = anatomy.lift
            if finding.side in ("right", "both"):
                right = height + 4
            if finding.side in ("left", "both"):
                left = height + 6
            anatomy = change(anatomy, lift=(right, left))
        elif finding.name == "scoliosis":
            bend = (7 + 16 * d + 2 * jitter) * (-1 if finding.side == "right" else 1)
            anatomy = change(anatomy, spine=(bend, float(rng.uniform(-0.5, 0.5))))
        elif finding.name == "atelectasis" and finding.severity == "severe" and finding.side in ("left", "right"):
            right, left = anatomy.lift
            anatomy = change(anatomy, lift=(right + 16, left) if finding.side == "right" else (right, left + 16))
    return Case(seed, anatomy, tuple(resolved))


def _smoothstep(t: NDArray) -> NDArray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def to_atlas(anatomy: Anatomy, points: Points) -> Points:
    """Map places of the patient [..., 3] to places of the atlas [..., 3], both in mm."""
    a = anatomy
    x, y, z = (points[..., i].astype(np.float32) for i in range(3))
    x, z = x - a.shift[0], z - a.shift[1]
    c, s = np.cos(a.roll), np.sin(a.roll)
    x, z = c * x + s * z, c * z - s * x
    c, s = np.cos(a.yaw), np.sin(a.yaw)
    x, y = c * x + s * y, c * y - s * x
    c, s = np.cos(a.pitch), np.sin(a.pitch)
    y, z = c * y + s * z, c * z - s * y
    x, y, z = x / (a.size[0] * (1 - a.taper * z / 100)), y / a.size[1], z / a.size[2]
    # A thicker or thinner shell outside the rib cage.
    radius = np.sqrt((x / 134) ** 2 + (y / 92) ** 2) + 1e-6
    outer = np.where(radius > 1, 1 + (radius - 1) / a.fat, radius) / radius
    x, y = x * outer, y * outer
    # The spine bends most, the front least.
    x = x - a.spine[0] * np.cos(np.pi * (z + 25) / 190 + a.spine[1]) * (0.35 + 0.65 * _smoothstep((20 - y) / 60))
    moved = np.zeros((3, *x.shape), np.float32)
    for wx, wy, wz, kx, ky, kz, phase in a.waves:
        wave = np.sin(kx * x + ky * y + kz * z + phase)
        moved[0] += wx * wave
        moved[1] += wy * wave
        moved[2] += wz * wave
    x, y, z = x + moved[0], y + moved[1], z + moved[2]
    # Domes: each lifted as a whole, or lowered in its middle.
    for centre, lift in ((-72.0, a.lift[0]), (82.0, a.lift[1])):
        ramp = _smoothstep((_LUNG_TOP - z) / (_LUNG_TOP - _DOME + 20))
        z = (
            z
            - lift * np.exp(-(((x - centre) / 58) ** 2)) * ramp
            + a.flattening * np.exp(-(((x - centre) / 36) ** 2)) * ramp
        )
    # Breathing: the lung is stretched, what lies below moves along.
    length = _LUNG_TOP - _DOME
    below = _DOME - a.inflation
    t = (_LUNG_TOP - z) / (_LUNG_TOP - below)
    z = np.where(z > _LUNG_TOP, z, np.where(z < below, z + a.inflation, _LUNG_TOP - t * length))
    # The heart, in its depth only, so that the ribs behind keep their shape.
    scale = a.heart / ATLAS_CTR
    weight = _smoothstep((y + 75) / 40)
    sx = 1 + (scale - 1) * weight
    sz = 1 + (scale**0.3 - 1) * weight
    for axis, s in ((0, sx), (1, sz)):
        u = (x - _HEART[0]) / _HEART_REACH[0]
        v = (z - _HEART[2]) / _HEART_REACH[1]
        r = np.sqrt(u**2 + v**2) + 1e-6
        inner = r / s
        between = 1 + (r - s) * (_HEART_OUTER - 1) / (_HEART_OUTER - s)
        factor = np.where(r < s, inner, np.where(r < _HEART_OUTER, between, r)) / r
        if axis == 0:
            x = _HEART[0] + (x - _HEART[0]) * factor
        else:
            z = _HEART[2] + (z - _HEART[2]) * factor
    return np.stack([x, y, z], -1).astype(np.float32)


def from_atlas(anatomy: Anatomy, points: Points) -> Points:
    """The inverse of `to_atlas` by fixed-point steps (0.1 mm), for the few points of devices and calcifications."""
    target = np.asarray(points, np.float32)
    guess = target.copy()
    for _ in range(40):
        guess = guess + 0.7 * (target - to_atlas(anatomy, guess))
    return guess
