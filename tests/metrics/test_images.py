"""Likeness of images against values worked out by hand, and against torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from llmcxr.metrics.images import mean_pairwise_ssim, ms_ssim, shifted_with_noise, ssim


def test_ssim_agrees_with_torchmetrics():
    """But for the borders, which torchmetrics cuts off."""
    published = pytest.importorskip("torchmetrics.functional.image")
    random = np.random.default_rng(2)
    image = gaussian_filter(random.random((192, 192)), 4)
    image = (image - image.min()) / np.ptp(image)
    for other in (np.clip(image + 0.1 * random.normal(size=image.shape), 0, 1), np.roll(image, 5, 1)):
        a, b = (torch.from_numpy(x)[None, None] for x in (image, other))
        theirs = published.structural_similarity_index_measure(a, b, data_range=1.0)
        assert ssim(image, other) == pytest.approx(float(theirs), abs=0.01)
        theirs = published.multiscale_structural_similarity_index_measure(a, b, data_range=1.0, normalize="relu")
        assert ms_ssim(image, other) == pytest.approx(float(theirs), abs=0.05)


def test_ssim():
    random = np.random.default_rng(6)
    image = random.random((32, 32))
    assert mean_pairwise_ssim([image, image, image]) == pytest.approx(1)
    noise = random.random((4, 32, 32))
    nearly = image + 0.02 * noise
    assert mean_pairwise_ssim(noise) < 0.2 < 0.9 < mean_pairwise_ssim(nearly) < 1
    # two flat images: only the luminance term is left
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert mean_pairwise_ssim([np.full((16, 16), 0.2), np.full((16, 16), 0.8)]) == pytest.approx(expected)
    assert np.isnan(mean_pairwise_ssim([image]))
    assert mean_pairwise_ssim(noise, pairs=2) == mean_pairwise_ssim(noise, pairs=2)
    assert mean_pairwise_ssim(noise[:2]) == pytest.approx(ssim(noise[0], noise[1]))


def test_ssim_over_scales():
    random = np.random.default_rng(1)
    image = gaussian_filter(random.random((128, 128)), 4)
    image = (image - image.min()) / np.ptp(image)
    assert ms_ssim(image, image) == pytest.approx(1)
    # One scale is left where a side is below 22 pixels: SSIM itself.
    small = random.random((2, 20, 20))
    assert ms_ssim(*small) == pytest.approx(max(0, ssim(*small)))
    # Two flat images: the luminance of the coarsest of the 4 scales of 128 pixels, to its share of their weights.
    flat = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    weight = 0.2363 / (0.0448 + 0.2856 + 0.3001 + 0.2363)
    assert ms_ssim(np.full((128, 128), 0.2), np.full((128, 128), 0.8)) == pytest.approx(flat**weight)
    # Fine noise hurts SSIM more than MS-SSIM, which mostly looks at coarser scales.
    noisy = np.clip(image + 0.1 * random.normal(size=image.shape), 0, 1)
    assert ssim(image, noisy) < ms_ssim(image, noisy) < 1
    moved = shifted_with_noise(image)
    assert np.array_equal(moved, shifted_with_noise(image)) and not np.array_equal(moved, shifted_with_noise(image, 1))
    assert np.abs(moved[3:, 3:] - image[:-3, :-3]).mean() == pytest.approx(0.016, abs=0.004)  # 0.02 x sqrt(2 / pi)
    other = gaussian_filter(random.random((128, 128)), 4)
    assert ms_ssim(image, moved) > 0.6 > ms_ssim(image, (other - other.min()) / np.ptp(other))
