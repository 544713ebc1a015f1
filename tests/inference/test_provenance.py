"""A drawn image says that it is synthetic, in its metadata always and visibly unless told otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.inference.provenance import save_synthetic

PIXELS = np.linspace(-1, 1, 128 * 128, dtype=np.float32).reshape(128, 128)


@pytest.mark.parametrize("visible", [True, False])
def test_metadata_and_mark(tmp_path, visible):
    save_synthetic(tmp_path / "a.png", PIXELS, "Größe: 5 cm\nno effusion", visible)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L" and image.size == (128, 128)
        assert image.text["Synthetic"] == "true" and image.text["Prompt"] == "Größe: 5 cm\nno effusion"
        assert image.text["Software"].startswith("llmcxr ") and "not for diagnosis" in image.text["Comment"]
        found = np.asarray(image).astype(int)
    expected = np.rint((PIXELS + 1) * 127.5).astype(int)
    changed = found != expected
    assert changed.any() == visible
    if visible:
        y, x = np.nonzero(changed)
        assert y.min() > 100 and x.max() < 90 and 40 < changed.sum() < 600  # letters in the lower left


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_synthetic(tmp_path / "file" / "a.png", PIXELS, "")
