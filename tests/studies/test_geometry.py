"""Squares: the paper's centre crop, padding, and borders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.studies.geometry import Geometry, inside_borders, lost, to_square

PAD = Geometry(square="pad")


def test_crop_keeps_the_centre_and_the_scale():
    pixels = np.zeros((40, 80), dtype=np.float32)
    pixels[:, 20:60] = 1  # exactly the centre square
    np.testing.assert_allclose(to_square(pixels, 10)[:, 1:-1], 1, atol=0.02)  # the filter rings at the edge
    assert to_square(np.roll(pixels, 4, 1), 10)[0, 0] < -0.8  # one output pixel is four input pixels
    tall = to_square(pixels.T, 10)
    np.testing.assert_allclose(tall, to_square(pixels, 10).T, atol=1e-6)


def test_range_mean_and_mirror():
    pixels = np.random.default_rng(1).random((50, 71), dtype=np.float32)
    for geometry in (Geometry(), PAD):
        square = to_square(pixels, 16, geometry)
        assert square.shape == (16, 16) and square.dtype == np.float32 and np.abs(square).max() <= 1
    np.testing.assert_allclose(to_square(pixels[:, ::-1], 16), to_square(pixels, 16)[:, ::-1], atol=1e-5)
    smooth = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    np.testing.assert_allclose(to_square(smooth, 16)[3, 2:-2], (np.arange(2, 14) + 0.5) / 8 - 1, atol=0.01)


def test_padding_shows_the_whole_image_in_the_middle_at_one_scale():
    disk = np.add.outer((np.arange(40) - 19.5) ** 2, (np.arange(80) - 39.5) ** 2) < 18**2
    square = to_square(disk.astype(np.float32), 40, PAD)
    assert (square[:10] == -1).all() and (square[30:] == -1).all()
    inside = square > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert len(rows) == len(columns) == 18 and rows[0] == 39 - rows[-1] and columns[0] == 39 - columns[-1]
    np.testing.assert_allclose(to_square(disk.T.astype(np.float32), 40, PAD), square.T, atol=1e-6)


@given(st.integers(4, 60), st.integers(4, 60), st.sampled_from([8, 17, 32]), st.sampled_from(["crop", "pad"]))
def test_any_shape_gives_a_square(H, W, size, square):
    pixels = np.full((H, W), 0.5, dtype=np.float32)
    found = to_square(pixels, size, Geometry(square=square))
    assert found.shape == (size, size) and np.isfinite(found).all()
    if square == "crop" or H == W:
        np.testing.assert_allclose(found, 0, atol=1e-6)
    else:
        share = (found > -0.5).mean()
        assert share == pytest.approx(min(H, W) / max(H, W), abs=1.1 / size)
        assert lost(H, W, Geometry()) == pytest.approx(1 - min(H, W) / max(H, W)) and lost(H, W, PAD) == 0


def test_borders_are_cut_and_dark_films_are_not():
    film = np.random.default_rng(0).uniform(0.2, 1, (60, 50)).astype(np.float32)
    framed = np.pad(film, ((7, 0), (12, 20)))
    framed[:, -3] = 0.02  # noise of a scanner
    np.testing.assert_array_equal(framed[inside_borders(framed)], film)
    np.testing.assert_array_equal(film[inside_borders(film)], film)
    marked = framed.copy()
    marked[2:6, 5:9] = 1  # a side marker in the border stays
    np.testing.assert_array_equal(marked[inside_borders(marked)], marked[2:, 5:-20])
    speck = np.zeros((100, 100), dtype=np.float32)
    speck[50:60, 50:60] = 1
    assert speck[inside_borders(speck)].shape == (100, 100)
    np.testing.assert_allclose(to_square(framed, 25, Geometry(cut_borders=True)), to_square(film, 25), atol=1e-6)
