"""The atlas: the chest CT of the assets, made normal once, coarsened and cached.

Arrays are indexed [Z, Y, X]: Z runs from feet to head, Y from back to front, X from the patient's right to left (so
that a frontal view with X to the right has the patient's right at the image's left). Positions are in mm from the
atlas centre (the middle of the lungs), ordered (x, y, z). Density is relative to water: air 0, water 1.
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.assets import cache_folder, fetch
from llmcxr.foundation.errors import UserError

ATLAS_VERSION = 1
SPACING = (1.40625, 2.8125, 2.5)  # mm along x, y, z
DENSITY_STEP = 0.01  # density of one grey level of the stored uint8

# Classes of `Atlas.labels`.
OUTSIDE, SOFT, BONE, SPINE, HEART, AORTA, TRACHEA = 0, 1, 2, 3, 4, 5, 6
LEFT_UPPER, LEFT_LOWER, RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER = 10, 11, 12, 13, 14
LUNG = {"right": (RIGHT_UPPER, RIGHT_MIDDLE, RIGHT_LOWER), "left": (LEFT_UPPER, LEFT_LOWER)}

# Numbers below are voxels of this one CT (x, y, z at 0.70 x 0.70 x 2.5 mm), found by looking at it.
_CROP_Y = (22, 110)  # in voxels of 4: the body with a margin of air
_PAD_TOP = 14  # slices added above, where the CT ends 20 mm over the lungs
_CENTRE = (250, 264, 92)
_MIRROR_X = 242  # between the lungs
_DISEASE = (
    ((319, 147, 90), 24.0),
    ((409, 308, 58), 20.0),
)  # spiculated mass and scar of the left lung: centre, radius in mm
_HILUM = {"right": (196, 256, 77), "left": (297, 250, 83)}
# The neck's half width, the height over the CT at the neck (mm), the slope, its softness (mm).
_SHOULDER = (48.0, 14.0, 0.42, 28.0)


@dataclass(frozen=True)
class Atlas:
    """A normal chest.

    density: uint8 [Z, Y, X] in steps of `DENSITY_STEP`. labels: uint8 [Z, Y, X], the classes above.
    rim: float32 [2, Z, X], mm from the outer (lateral and apical) edge of the right and left lung as seen from the front.
    """

    density: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    rim: NDArray[np.float32]

    @property
    def origin(self) -> NDArray[np.float32]:
        """Position (mm) of the centre of voxel (0, 0, 0)."""
        x = (0.5 - _CENTRE[0]) * 0.703125
        y = (4 * _CROP_Y[0] + 1.5 - _CENTRE[1]) * 0.703125
        return np.array([x, y, -_CENTRE[2] * SPACING[2]], dtype=np.float32)

    def axes(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Positions (mm) of the voxel centres along x, y and z."""
        Z, Y, X = self.density.shape
        o = self.origin
        x, y, z = (o[i] + SPACING[i] * np.arange(n, dtype=np.float32) for i, n in enumerate((X, Y, Z)))
        return x, y, z

    @functools.cached_property
    def lung(self) -> dict[str, NDArray[np.bool_]]:
        """Voxels of the lung of each side, [Z, Y, X]."""
        return {side: np.isin(self.labels, lobes, kind="table") for side, lobes in LUNG.items()}

    @functools.cached_property
    def lung_box(self) -> dict[str, tuple[slice, slice, slice]]:
        """The smallest box [Z, Y, X] around the lung of each side."""
        return {side: ndimage.find_objects(lung.astype(np.uint8))[0] for side, lung in self.lung.items()}

    @functools.cached_property
    def lung_path(self) -> dict[str, NDArray[np.float32]]:
        """mm of lung that a frontal ray crosses, [Z, X] by side."""
        return {s: lung.sum(1).astype(np.float32) * SPACING[1] for s, lung in self.lung.items()}

    @functools.cached_property
    def dome(self) -> dict[str, NDArray[np.float32]]:
        """Height (mm) at which a frontal ray of column x first crosses 60 mm of lung, [X] by side; NaN outside the lung."""
        z = self.axes()[2]
        out = {}
        for side, path in self.lung_path.items():
            deep = path > 60
            out[side] = np.where(deep.any(0), z[deep.argmax(0)], np.nan).astype(np.float32)
        return out

    def hilum(self, side: str) -> NDArray[np.float32]:
        """Position (mm) of the hilum of a side."""
        return np.array(
            [(v - c) * s for v, c, s in zip(_HILUM[side], _CENTRE, (0.703125, 0.703125, 2.5), strict=True)], np.float32
        )


def _make_normal(hu: NDArray, mask: NDArray) -> NDArray:
    """Replace the diseased parts of the left lung by the mirrored right lung; arrays are [X, Y, Z]."""
    lung = (mask >= 10) & (mask <= 14)
    for centre, radius in _DISEASE:
        reach = [int(np.ceil(radius / s)) for s in (0.703125, 0.703125, 2.5)]
        box = tuple(slice(c - r, c + r + 1) for c, r in zip(centre, reach, strict=True))
        steps = np.meshgrid(
            *(np.arange(-r, r + 1) * s for r, s in zip(reach, (0.703125, 0.703125, 2.5), strict=True)), indexing="ij"
        )
        distance = np.sqrt(sum(s**2 for s in steps))
        mirrored = (slice(2 * _MIRROR_X - box[0].stop + 1, 2 * _MIRROR_X - box[0].start + 1), *box[1:])
        donor, donor_lung = hu[mirrored][::-1], lung[mirrored][::-1]
        hole = ndimage.binary_closing(np.pad(np.isin(mask[box], (10, 11)), 12, mode="edge"), iterations=10)[
            12:-12, 12:-12, 12:-12
        ]
        weight = np.clip((radius - distance) / 5.0, 0, 1) * (hole & donor_lung & (mask[box] != 51))
        hu[box] = hu[box] * (1 - weight) + donor * weight
        mask[box][(weight > 0.5) & ~lung[box]] = 11
    return hu


def build_atlas(ct: Path, organs: Path) -> Atlas:
    """Build the atlas from the CT (HU) and its organ mask, both [X, Y, Z] NIfTI files of the same grid."""
    hu = np.asarray(nibabel.load(ct).dataobj).astype(np.float32)  # type: ignore[attr-defined]
    mask = np.asarray(nibabel.load(organs).dataobj).astype(np.uint8)  # type: ignore[attr-defined]
    hu = _make_normal(hu, mask)
    skeleton = ((mask >= 25) & (mask <= 50)) | ((mask >= 69) & (mask <= 78)) | ((mask >= 92) & (mask <= 116))
    near_bone = ndimage.binary_dilation(skeleton, np.ones((5, 5, 1), bool))
    lung = (mask >= 10) & (mask <= 14)
    # Contrast, clips and streaks brighter than soft tissue become soft tissue; bone keeps its relief up to 1100 HU.
    hu = np.where(near_bone, np.minimum(hu, 1100), np.minimum(hu, 90))
    hu[(mask >= 51) & (mask <= 68)] = 45
    hu[lung] = np.minimum(hu[lung], 40)
    density = np.clip(1 + hu / 1000, 0, None)
    # Low-energy photons of a radiograph are stopped by bone more than the CT number tells.
    density = np.where((hu > 130) & near_bone, density + 0.9 * (hu - 130) / 1000, density)

    X, Y, Z = hu.shape
    coarse = density.reshape(X // 2, 2, Y // 4, 4, Z).mean((1, 3))[:, _CROP_Y[0] : _CROP_Y[1]]
    small = mask[1::2, 2::4][:, _CROP_Y[0] : _CROP_Y[1]]
    # The body without table, blanket and arms' outline: the largest piece once thin bridges are cut.
    solid = ndimage.binary_opening(coarse > 0.5, iterations=1)
    pieces, _ = ndimage.label(solid)
    body = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    for z in range(Z):
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    body = ndimage.binary_dilation(body, iterations=1)
    coarse = np.where(body, coarse, 0)
    coarse[:, [0, -1]] = 0  # so that rays that miss the body see air beyond the volume

    labels = np.where(body & (coarse > 0.3), SOFT, OUTSIDE).astype(np.uint8)
    labels[((small >= 69) & (small <= 78)) | ((small >= 92) & (small <= 116))] = BONE
    labels[(small >= 25) & (small <= 50)] = SPINE
    for organ, name in ((51, HEART), (61, HEART), (52, AORTA), (16, TRACHEA), *((i, i) for i in range(10, 15))):
        labels[small == organ] = name

    top = coarse[:, :, -4:].mean(2, keepdims=True)
    coarse = np.concatenate([coarse, np.repeat(top, _PAD_TOP, 2)], 2).transpose(2, 1, 0)
    labels = np.concatenate([labels, np.repeat(np.minimum(labels[:, :, -1:], SOFT), _PAD_TOP, 2)], 2).transpose(2, 1, 0)
    # Raised arms would fill the upper corners: let the shoulders slope as with arms down.
    begin, height, slope, soft = _SHOULDER
    above_feet = np.arange(Z + _PAD_TOP, dtype=np.float32)[:, None] * SPACING[2]
    lateral = np.abs((np.arange(X // 2) * 2 + 0.5 - _CENTRE[0]) * 0.703125)[None]
    beside = np.clip(lateral - begin, 0, None)
    surface = Z * SPACING[2] + height - slope * beside + 60 * np.exp(-beside / 14)
    coarse = coarse * np.clip((surface - above_feet) / soft, 0, 1)[:, None]

    rims = []
    for side in ("right", "left"):
        outline = ndimage.binary_fill_holes(np.isin(labels, LUNG[side]).sum(1) >= 4)
        rows = np.arange(outline.shape[1])[None]
        middle = (outline * rows).sum(1, keepdims=True) / np.maximum(outline.sum(1, keepdims=True), 1)
        lateral_half = rows < middle if side == "right" else rows > middle
        above = np.arange(outline.shape[0])[:, None] > np.flatnonzero(outline.any(1)).max()
        outer = ~outline & (above | (lateral_half & outline.any(1, keepdims=True)))
        rims.append(ndimage.distance_transform_edt(~outer, sampling=(SPACING[2], SPACING[0])))
    levels = np.clip(np.round(coarse / DENSITY_STEP), 0, 255).astype(np.uint8)
    return Atlas(np.ascontiguousarray(levels), np.ascontiguousarray(labels), np.stack(rims).astype(np.float32))


def atlas_path() -> Path:
    """Where the atlas is cached."""
    return cache_folder() / "chest-ct" / f"atlas-v{ATLAS_VERSION}.npz"


def _read(path: Path) -> Atlas | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            atlas = Atlas(arrays["density"], arrays["labels"], arrays["rim"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    Z, Y, X = atlas.density.shape if atlas.density.ndim == 3 else (0, 0, 0)
    sound = atlas.labels.shape == (Z, Y, X) and atlas.rim.shape == (2, Z, X) and atlas.density.dtype == np.uint8
    return atlas if sound and Z else None


@functools.lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The atlas from the cache; built first (5 s, about 1.5 GB) where it is missing or damaged.

    Raises `UserError` where the CT itself cannot be fetched or read.
    """
    path = atlas_path()
    atlas = _read(path) if path.exists() else None
    if atlas is None:
        folder = fetch("chest-ct")
        try:
            atlas = build_atlas(folder / "cxr.nii.gz", folder / "mask.nii.gz")
        except (OSError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
            raise UserError(
                f"the chest CT in {folder} cannot be read ({error}). Delete the folder and run `llmcxr fetch`."
            ) from error
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, density=atlas.density, labels=atlas.labels, rim=atlas.rim)
    return atlas
