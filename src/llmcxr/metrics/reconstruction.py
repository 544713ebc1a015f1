"""How much of images a way through few numbers keeps: errors, power by octave, use of a codebook, distance of features.

Shapes: N images, S side in pixels, D features. Pixels in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def psnr(a: ArrayLike, b: ArrayLike) -> float:
    """Peak signal to noise of two images [S, S], in dB; infinite where they are equal."""
    error = float(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def power_by_octave(images: ArrayLike) -> Floats:
    """Power [octaves] of images [N, S, S], summed over images and directions, from the finest octave on.

    Octave k holds the frequencies above S / 2**(k + 2) and up to S / 2**(k + 1) cycles an image (k = 0 ends at Nyquist), as many as
    leave one cycle. The mean is taken off, and a Hann window fades the borders out.
    """
    x = np.asarray(images, float)
    S = x.shape[-1]
    x = x - x.mean((-2, -1), keepdims=True)
    fade = np.hanning(S + 1)[:S]
    spectrum = (np.abs(np.fft.fft2(x * fade[:, None] * fade)) ** 2).sum(0)
    cycles = np.fft.fftfreq(S) * S
    radius = np.hypot(cycles[:, None], cycles)
    ends = [S / 2 ** (k + 1) for k in range(int(np.log2(S)) - 1)]
    return np.array([spectrum[(radius > end / 2) & (radius <= end)].sum() for end in ends])


def perplexity(counts: ArrayLike) -> float:
    """Of a codebook, by how often each code occurs: exp of the entropy, at most its size."""
    p = np.asarray(counts, float)
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Between features [N, D] and [M, D], taken as two Gaussians (Heusel et al., 2017).

    With fewer rows than features it is biased upwards: compare only numbers of the same N. NaN below two rows.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if min(len(x), len(y)) < 2:
        return float("nan")
    # The trace of sqrt(Cx Cy) is the nuclear norm of the product of the centred rows: no root of a D x D matrix is needed.
    u, v = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    cross = np.linalg.svd(u @ v.T, compute_uv=False).sum()
    means = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(max(0.0, means + (u**2).sum() + (v**2).sum() - 2 * cross))
