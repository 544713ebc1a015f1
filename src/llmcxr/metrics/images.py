"""How alike images are: SSIM, over one scale or several, of pairs and within a set.

Ours rather than torchmetrics': 3 ms a pair of 128 px against 16 on one core, and its scales fit images below 160 px.

Shapes: N images, H x W pixels in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from llmcxr.foundation.randomness import stream

Floats = NDArray[np.float64]

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale on, as published


def _windowed(image: Floats) -> Floats:
    return gaussian_filter(image, sigma=1.5, truncate=3.5)  # 11 x 11 pixels, as published


def _ssim_parts(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Luminance and contrast-structure maps [H, W] of SSIM (K1 = 0.01, K2 = 0.03) for images in [0, 1]."""
    mean_a, mean_b = _windowed(a), _windowed(b)
    product, c1, c2 = mean_a * mean_b, 0.01**2, 0.03**2
    squares = mean_a**2 + mean_b**2
    variances = _windowed(a**2) + _windowed(b**2) - squares
    covariance = _windowed(a * b) - product
    return (2 * product + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2)


def ssim(a: ArrayLike, b: ArrayLike) -> float:
    """SSIM of two images [H, W] in [0, 1] (Wang et al., IEEE TIP 2004)."""
    luminance, structure = _ssim_parts(np.asarray(a, float), np.asarray(b, float))
    return float((luminance * structure).mean())


def ms_ssim(a: ArrayLike, b: ArrayLike) -> float:
    """Multi-scale SSIM of two images [H, W] in [0, 1] (Wang et al., Asilomar 2003).

    As many of the five scales as leave a side of 11 pixels, their weights made to sum to 1; the luminance of the coarsest.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    weights = [w for k, w in enumerate(_SCALE_WEIGHTS) if min(x.shape) >> k >= 11] or [1.0]
    result = 1.0
    for k, weight in enumerate(weights):
        luminance, structure = _ssim_parts(x, y)
        value = (luminance * structure).mean() if k == len(weights) - 1 else structure.mean()
        result *= max(0.0, float(value)) ** (weight / sum(weights))
        H, W = (side // 2 * 2 for side in x.shape)
        x, y = (z[:H, :W].reshape(H // 2, 2, W // 2, 2).mean((1, 3)) for z in (x, y))
    return result


def shifted_with_noise(image: ArrayLike, seed: int = 0, share: float = 0.02) -> Floats:
    """`image` [H, W] in [0, 1] moved by `share` of its sides (edges repeated), with noise of that deviation: still the same patient."""
    x = np.asarray(image, float)
    dy, dx = (max(1, round(share * side)) for side in x.shape)
    moved = np.pad(x, ((dy, 0), (dx, 0)), mode="edge")[: x.shape[0], : x.shape[1]]
    return np.clip(moved + share * stream(seed, "noise").normal(size=x.shape), 0, 1)


def mean_pairwise_ssim(images: ArrayLike, pairs: int = 500, seed: int = 0) -> float:
    """Likeness of drawn images to each other: mean SSIM over pairs; 1 means that all are the same.

    `images` [N, H, W] in [0, 1], over all pairs or `pairs` drawn ones. It speaks of variety only beside the same number
    for real images. NaN for fewer than two images.
    """
    stack = np.asarray(images, float)
    left, right = np.triu_indices(len(stack), 1)
    if not left.size:
        return float("nan")
    if left.size > pairs:
        chosen = stream(seed, "ssim pairs").choice(left.size, pairs, replace=False)
        left, right = left[chosen], right[chosen]
    return float(np.mean([ssim(stack[a], stack[b]) for a, b in zip(left.tolist(), right.tolist(), strict=True)]))
