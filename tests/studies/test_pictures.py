"""PNG, JPEG and PIL images: depth, colour, alpha and orientation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import deep_png, picture_file
from PIL import Image, ImageOps, PngImagePlugin

from llmcxr.foundation.errors import UserError
from llmcxr.studies.grey_scale import MOST_PIXELS, stretch, value_range
from llmcxr.studies.pictures import turned
from llmcxr.studies.radiographs import read_radiograph

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)


def test_eight_bits_are_divided_by_255(tmp_path):
    pixels = np.array([[0, 51], [102, 255]], dtype=np.uint8)
    found = read_radiograph(picture_file(tmp_path / "a.png", pixels))
    np.testing.assert_allclose(found.pixels, [[0, 0.2], [0.4, 1]], atol=1e-6)
    assert found.grey_scale == "8 bits as displayed" and found.remarks == () and found.name.endswith("a.png")


@pytest.mark.parametrize("top", [255, 1000, 1023, 1024, 3000, 4095, 4096, 20000, 65535])
def test_sixteen_bits_look_the_same_whatever_depth_they_hold(tmp_path, top):
    pixels = np.linspace(0, top, 48 * 64).astype(np.uint16).reshape(48, 64)
    found = read_radiograph(picture_file(tmp_path / "a.png", pixels))
    np.testing.assert_allclose(found.pixels, np.linspace(0, 1, 48 * 64).reshape(48, 64), atol=6e-3)
    pixels[20, 20] = 65535  # one hot pixel
    hot = read_radiograph(picture_file(tmp_path / "a.png", pixels)).pixels
    np.testing.assert_allclose(np.delete(hot, 20 * 64 + 20), np.delete(found.pixels, 20 * 64 + 20), atol=6e-3)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_and_alpha_of_16_bits_keep_all_of_them(tmp_path, channels):
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8) * 87  # 12 bits
    pixels = np.stack(
        [grey] * (1 if channels == 2 else 3) + [np.full_like(grey, 65535)] * (channels in (2, 4)), axis=-1
    )
    path = deep_png(tmp_path / "a.png", pixels)
    found = read_radiograph(path)
    np.testing.assert_allclose(found.pixels, np.linspace(0, 1, 48).reshape(6, 8), atol=1e-5)
    assert found.grey_scale == "16-bit colour or alpha, darkest to brightest"
    with Image.open(path) as picture:  # Pillow's own 8 bits would be near black
        np.testing.assert_array_equal(read_radiograph(picture).pixels, found.pixels)


def test_colour_is_luminance_and_transparent_parts_are_shown(tmp_path):
    rgb = np.zeros((2, 2, 4), dtype=np.uint8)
    rgb[..., 3] = [[0, 255], [128, 1]]
    rgb[0, 0, :3], rgb[0, 1, :3], rgb[1, 0, :3] = (255, 0, 0), (0, 255, 0), (200, 200, 200)
    found = read_radiograph(picture_file(tmp_path / "a.png", rgb))
    np.testing.assert_allclose(found.pixels, [[0.299, 0.587], [200 / 255, 0]], atol=3e-3)
    assert found.remarks == ("transparent parts shown",)
    rgb[..., 3] = 255
    assert read_radiograph(picture_file(tmp_path / "a.png", rgb)).remarks == ()


def test_jpeg_of_a_smooth_image_is_close(tmp_path):
    pixels = np.linspace(20, 230, 64, dtype=np.uint8)[None].repeat(64, 0)
    found = read_radiograph(picture_file(tmp_path / "a.jpg", pixels, quality=95))
    np.testing.assert_allclose(found.pixels, pixels / 255, atol=0.02)
    assert found.remarks == ("lossy (JPEG)",)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_obeyed(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(NOISE).save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture), dtype=np.float32) / 255
        np.testing.assert_array_equal(read_radiograph(picture).pixels, expected)
    found = read_radiograph(path)
    np.testing.assert_array_equal(found.pixels, expected)
    said = "mirrored" if orientation in (2, 4, 5, 7) else "turned"
    assert [r for r in found.remarks if "EXIF" in r] == [f"{said} as EXIF says"] * (2 <= orientation <= 8)


def test_turning_of_sixteen_bits_as_pillow_does():
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4)
    for orientation in range(1, 9):
        picture = Image.fromarray(deep)
        picture.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(turned(deep, orientation), np.asarray(ImageOps.exif_transpose(picture)))


def test_a_picture_is_read_as_its_file_is(tmp_path):
    rng = np.random.default_rng(3)
    pictures = {
        "I;16": Image.fromarray(rng.integers(0, 4096, (8, 8), dtype=np.uint16)),
        "L": Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)),
        "1": Image.fromarray(rng.integers(0, 2, (8, 8), dtype=np.uint8) > 0),
        "LA": Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).convert("LA"),
        "RGBA": Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)),
        "P": Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).quantize(),
    }
    for mode, picture in pictures.items():
        assert picture.mode == mode
        picture.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_radiograph(picture).pixels, read_radiograph(tmp_path / "a.png").pixels)
    deep = read_radiograph(pictures["I;16"]).pixels
    np.testing.assert_array_equal(read_radiograph(pictures["I;16"].convert("I")).pixels, deep)
    assert deep.dtype == np.float32 and len(np.unique(deep)) > 50  # 8 bits saturated at 255 of 4095


def test_pictures_of_real_numbers_are_in_their_range():
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(read_radiograph(Image.fromarray(values)).pixels, values)
    for wrong in (values * 255, values - 0.5, values * np.nan, np.arange(-8, 8, dtype=np.int32).reshape(4, 4)):
        with pytest.raises(UserError, match="should be 0 to"):
            read_radiograph(Image.fromarray(wrong))


def test_a_size_that_no_radiograph_has_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    for side, format in ((9000, "jpg"), (14000, "png")):
        path = tmp_path / f"a.{format}"
        Image.new("1" if format == "png" else "L", (side, side)).save(path)
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=f"{path.name}.*(more|larger) than any radiograph"),
        ):
            patch.setattr(Image.Image, "convert", None)  # what decodes
            patch.setattr(PngImagePlugin.PngImageFile, "load", None)
            read_radiograph(path)
        assert side**2 > MOST_PIXELS


def test_every_part_of_a_png_is_checked(tmp_path):
    path = picture_file(tmp_path / "a.png", NOISE)
    whole = path.read_bytes()
    for place in range(8, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = read_radiograph(path).pixels
        except UserError as error:
            assert "a.png" in str(error)
        else:  # the last part holds nothing
            np.testing.assert_array_equal(found, NOISE / np.float32(255))
            assert place > len(whole) - 13


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=50, unique=True), st.integers(1, 40), st.integers(0, 900))
def test_the_range_follows_the_values(values, scale, offset):
    """No jumps: a film of other gain and offset looks the same."""
    film = np.array(values, dtype=np.float64)[None]
    grey = stretch(film, *value_range(film))
    assert grey.min() == 0 and grey.max() == 1
    np.testing.assert_allclose(stretch(film * scale + offset, *value_range(film * scale + offset)), grey, atol=1e-6)
