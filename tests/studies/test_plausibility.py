"""Images that no radiograph looks like are named; a simulated one and its borders are not."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import film

from llmcxr.studies.plausibility import REASONS, implausible

CASES = {
    "nearly black": lambda: (film() // 16).astype(np.uint8),  # 12 of 16 bits
    "nearly white": lambda: (220 + film() // 8).astype(np.uint8),
    "nearly constant": lambda: (110 + film() // 16).astype(np.uint8),
    "two or three grey values": lambda: np.where(film() > 120, 230, 40).astype(np.uint8),
    "inverted": lambda: 255 - film(),
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_kind_is_named(reason):
    assert implausible(CASES[reason]()) == reason


@pytest.mark.parametrize("S", [16, 64, 256])
def test_a_film_passes_at_any_size_with_padding_and_other_contrast(S):
    pixels = film(S)
    assert implausible(pixels) == ""
    assert implausible((pixels * 0.7 + 20).astype(np.uint8)) == ""
    padded = np.pad(pixels, ((0, 0), (S // 4, S // 4)))
    assert implausible(padded) == ""
    assert implausible(np.pad(255 - pixels, ((0, 0), (S // 4, S // 4)))) == "inverted"  # black beside it hides nothing


def test_nothing_at_all_is_nearly_black():
    assert implausible(np.zeros((8, 8), np.uint8)) == "nearly black"
    assert implausible(np.full((8, 8), 255, np.uint8)) == "nearly white"
