"""Images go into the model as their files do."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.studies.geometry import CENTRE_CROP, Geometry


def model_of(size: int, geometry: Geometry = CENTRE_CROP) -> LlmCxr:
    return LlmCxr(SimpleNamespace(info=SimpleNamespace(image_size=size, geometry=geometry)), None)  # type: ignore[arg-type]


def test_pictures_of_16_bits_do_not_saturate(tmp_path):
    picture = Image.fromarray(np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64))
    picture.save(tmp_path / "a.png")
    model = model_of(64)
    given = model.images.pixels(picture)
    np.testing.assert_allclose(given, model.images.pixels(tmp_path / "a.png"), atol=1e-6)
    assert (given == 1).mean() < 0.01  # `convert("L")` made 15 of 16 pixels white


def test_images_that_show_nothing_are_refused(tmp_path):
    model, flat = model_of(8), np.full((8, 8), 0.25, dtype=np.float32)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.arange(128, dtype=np.uint8)[None]).save(tmp_path / "narrow.png")
    for image, message in [
        (flat * np.nan, "should be in"),
        (np.where(np.eye(8), np.nan, flat), "should be in"),
        (np.where(np.eye(8), np.inf, flat), "should be in"),
        (flat, "shows nothing"),
        (flat[:1], "should be"),
        (tmp_path / "a.png", "same value everywhere"),
        (Image.open(tmp_path / "a.png"), "same value everywhere"),
        (tmp_path / "narrow.png", "1 x 128 pixels"),
        (Image.open(tmp_path / "narrow.png"), "1 x 128 pixels"),
    ]:
        with pytest.raises(UserError, match=message):
            model.images.pixels(image)


def test_images_are_squared_as_the_model_was_trained():
    picture = Image.fromarray(np.random.default_rng(0).integers(100, 200, (32, 64), dtype=np.uint8))
    assert (model_of(16, Geometry("pad")).images.pixels(picture)[:4] == -1).all() and model_of(16).images.pixels(
        picture
    ).min() > -1
