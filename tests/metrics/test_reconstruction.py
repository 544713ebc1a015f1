"""Each number by a second way: by hand, by scipy, by torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import entropy
from torchmetrics.functional.image import peak_signal_noise_ratio

from llmcxr.metrics.reconstruction import frechet_distance, perplexity, power_by_octave, psnr


def images(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, side, side))


def test_psnr_is_torchmetrics():
    a, b = images(2)
    expected = peak_signal_noise_ratio(torch.tensor(b), torch.tensor(a), data_range=1.0)
    assert psnr(a, b) == pytest.approx(expected.item()) and psnr(a, a) == float("inf")


def test_power_by_octave_by_hand():
    """A sum over single waves; each in the octave that its frequency says."""
    x = images(2, 8)
    S, fade = 8, 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(8) / 8)
    expected = np.zeros(2)
    for image in x:
        y = (image - image.mean()) * np.outer(fade, fade)
        for u in range(-4, 4):
            for v in range(-4, 4):
                wave = np.exp(-2j * np.pi * (u * np.arange(S)[:, None] + v * np.arange(S)) / S)
                r = math.hypot(u, v)
                for octave, (low, high) in enumerate([(2, 4), (1, 2)]):
                    expected[octave] += abs((y * wave).sum()) ** 2 * (low < r <= high)
    np.testing.assert_allclose(power_by_octave(x), expected)


@pytest.mark.parametrize(("cycles", "octave"), [(60, 0), (40, 0), (30, 1), (12, 2), (6, 3)])
def test_a_wave_lies_in_its_octave(cycles, octave):
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * cycles * np.arange(128) / 128)
    power = power_by_octave(np.tile(wave, (1, 128, 1)))
    assert power.argmax() == octave and power[octave] > 0.9 * power.sum()


def test_blur_and_speckle_show_at_the_fine_end():
    x = np.stack([gaussian_filter(image, 1) for image in images(4, 64)])
    blurred = power_by_octave(np.stack([gaussian_filter(image, 1) for image in x])) / power_by_octave(x)
    assert blurred[0] < 0.1 and blurred[-1] > 0.8 and (np.diff(blurred) > 0).all()
    speckled = power_by_octave(x + 0.1 * images(4, 64)) / power_by_octave(x)
    assert speckled[0] > 2 and speckled[-1] < 1.3


def test_perplexity_is_scipys():
    counts = [0, 4, 1, 3]
    assert perplexity(counts) == pytest.approx(np.exp(entropy(np.array(counts) / 8))) and perplexity(
        [5, 5, 0]
    ) == pytest.approx(2)


@pytest.mark.parametrize("count", [40, 5])  # more, and fewer, images than features
def test_frechet_distance_is_the_published_formula(count):
    random = np.random.default_rng(1)
    a, b = random.normal(size=(count, 8)), random.normal(1, 2, (count, 8))
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9) and math.isnan(frechet_distance(a[:1], b))
