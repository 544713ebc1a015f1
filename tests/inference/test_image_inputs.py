"""Images go into the model as their files do."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from llmcxr.inference.llm_cxr import LlmCxr


def test_pictures_of_16_bits_do_not_saturate(tmp_path):
    picture = Image.fromarray(np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64))
    picture.save(tmp_path / "a.png")
    model = LlmCxr(SimpleNamespace(info=SimpleNamespace(image_size=64)), None)  # type: ignore[arg-type]
    given = model._pixels(picture)
    np.testing.assert_allclose(given, model._pixels(tmp_path / "a.png"), atol=1e-6)
    assert (given == 1).mean() < 0.01  # `convert("L")` made 15 of 16 pixels white
