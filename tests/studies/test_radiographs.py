"""The one door to pixels: what a file is, its content says; every kind of bad file gives one error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import RAMP, dicom_file, picture_file
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.studies.geometry import Geometry, to_square
from llmcxr.studies.radiographs import from_uint8, load_square, read_radiograph, to_uint8

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = picture_file(folder / "whole.jpg", NOISE).read_bytes()
    files = {
        "truncated jpeg": ("t.jpg", whole[: len(whole) // 2], "truncated"),
        "truncated png": ("t.png", picture_file(folder / "whole.png", NOISE).read_bytes()[:900], "decoded"),
        "text": ("text.png", b"this is no image", "not a PNG, JPEG or DICOM"),
        "empty": ("empty.png", b"", "empty"),
        "text as dicom": ("text.dcm", b"hello" * 100, "text.dcm"),
        "truncated dicom": ("t.dcm", dicom_file(folder / "w.dcm", RAMP).read_bytes()[:-40], "cannot be read"),
    }
    result = {}
    for kind, (name, content, message) in files.items():
        (folder / name).write_bytes(content)
        result[kind] = (folder / name, message)
    result["constant"] = (picture_file(folder / "c.png", np.full((5, 5), 7, np.uint8)), "same value everywhere")
    result["narrow"] = (picture_file(folder / "l.png", NOISE[:1]), "1 x 64 pixels: no radiograph is so narrow")
    result["missing"] = (folder / "nowhere.png", "cannot be opened")
    result["folder"] = (folder, "cannot be opened")
    return result


def test_every_bad_file_is_one_error_that_names_it(tmp_path):
    for kind, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=message) as caught:
            read_radiograph(path)
        assert str(path) in str(caught.value), kind


def test_a_file_is_what_its_content_says(tmp_path):
    png = picture_file(tmp_path / "a.png", NOISE)
    (tmp_path / "a.dcm").write_bytes(png.read_bytes())
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.dcm").pixels, read_radiograph(str(png)).pixels)


def test_the_same_stored_values_look_the_same_in_every_format(tmp_path):
    film = np.add.outer(np.arange(64), np.arange(64) * 31).astype(np.uint16) + 1000
    as_dicom = read_radiograph(dicom_file(tmp_path / "a.dcm", film)).pixels
    np.testing.assert_allclose(read_radiograph(picture_file(tmp_path / "a.png", film)).pixels, as_dicom, atol=1e-6)


def test_uint8_round_trip_and_ends():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(np.array([-1.0, 1.0, -3.0, 3.0, 0.0])).tolist() == [0, 255, 0, 255, 128]


def test_a_file_of_the_very_size_comes_out_unchanged(tmp_path):
    path = picture_file(tmp_path / "a.png", NOISE)
    for geometry in (Geometry(), Geometry(square="pad")):
        np.testing.assert_array_equal(to_uint8(load_square(path, 64, geometry)), NOISE)
    np.testing.assert_array_equal(load_square(path, 32), to_square(read_radiograph(path).pixels, 32))
    np.testing.assert_array_equal(load_square(Image.fromarray(NOISE), 32), load_square(path, 32))


def test_too_few_pixels_and_an_empty_middle_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.png has 64 x 64 pixels: too few"):
        load_square(picture_file(tmp_path / "a.png", NOISE), 512)
    aside = np.zeros((20, 60), dtype=np.uint8)
    aside[:, :5] = NOISE[:20, :5]
    with pytest.raises(UserError, match=r"b.png shows nothing"):
        load_square(picture_file(tmp_path / "b.png", aside), 16)
