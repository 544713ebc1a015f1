"""Varied training images: the rest stays, ranges hold, and processes draw what one would."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmcxr.foundation.randomness import stream
from llmcxr.image_tokens.augmentation import varied

B, S = 12, 32
ALL = slice(None)


def images():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.uniform(-1, 1, (B, 1, S, S)).astype(np.float32))


def drawn(x, share, part=ALL):
    return varied(x[part], B, part, share, stream(0, "varied", 3))


def test_without_a_share_nothing_changes():
    x = images()
    assert torch.equal(drawn(x, 0.0), x)


def test_a_share_is_changed_and_the_rest_is_untouched():
    x = images()
    same = (drawn(x, 0.5) == x).flatten(1).all(1)
    assert 2 <= same.sum() <= B - 2
    assert not (drawn(x, 1.0) == x).flatten(1).all(1).any()


def test_pixels_stay_in_range_and_in_shape():
    y = drawn(images(), 1.0)
    assert y.shape == (B, 1, S, S) and y.dtype == torch.float32
    assert y.min() >= -1 and y.max() <= 1 and y.isfinite().all()


@pytest.mark.parametrize("value", [-1.0, 0.2, 1.0])
def test_a_flat_image_stays_flat(value):
    y = drawn(torch.full((B, 1, S, S), value), 1.0)
    assert torch.allclose(y.amax((1, 2, 3)), y.amin((1, 2, 3)), atol=1e-5)


def test_shares_of_processes_make_up_the_step():
    x = images()
    parts = [slice(0, 5), slice(5, B)]
    assert torch.equal(torch.cat([drawn(x, 0.7, part) for part in parts]), drawn(x, 0.7))


def test_what_is_moved_is_the_image_itself():
    """A bright disc stays one bright disc of about its size, near where it was or mirrored."""
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    disc = ((y - 16) ** 2 + (x - 16) ** 2 < 36).float() * 1.6 - 0.8
    z = drawn(disc.expand(B, 1, S, S), 1.0)
    for image in z[:, 0]:
        bright = image > (image.max() + image.min()) / 2
        assert 0.8 < bright.sum() / (disc > 0).sum() < 1.8
        centre = torch.stack([y[bright].float().mean(), x[bright].float().mean()])
        assert (centre - 16).abs().max() < 5
