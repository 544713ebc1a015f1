"""Every image of a data set leaves a note, those that are left out as well."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import dicom_file, film, picture_file

from llmcxr.foundation.errors import UserError
from llmcxr.studies import image_notes
from llmcxr.studies.geometry import Geometry
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import Study

FILM = film(40, 60)


@pytest.fixture
def studies(tmp_path) -> list[Study]:
    picture_file(tmp_path / "a.png", FILM)
    picture_file(tmp_path / "dark.png", FILM // 16)
    dicom_file(tmp_path / "film.dcm", (255 - FILM).astype(np.uint16) * 16, "MONOCHROME1")
    dicom_file(tmp_path / "slice.dcm", FILM.astype(np.uint16), Modality="CT")
    (tmp_path / "broken.png").write_bytes(b"broken")
    names = ("a.png", "dark.png", "film.dcm", "slice.dcm", "broken.png")
    return [Study(name, name, name, name, "train") for name in names]


def test_notes_say_how_each_was_read_and_why_some_were_not(tmp_path, studies):
    kept, notes = PixelStore.write(tmp_path / "pixels.npy", studies, tmp_path, 16)
    assert [s.image_id for s in kept] == ["a.png", "dark.png", "film.dcm"]
    assert [n.image_id for n in notes] == [s.image_id for s in studies]
    by = {n.image_id: n for n in notes}
    expected = image_notes.ImageNote("a.png", "a.png", 40, 60, "8 bits as displayed", (), 0.3333)
    assert by["a.png"] == expected
    assert by["film.dcm"].grey_scale == "DICOM darkest to brightest"
    assert by["dark.png"].implausible == "nearly black" and not by["dark.png"].left_out
    assert by["slice.dcm"].left_out == "modality CT" and "modality is CT" in by["slice.dcm"].error
    assert image_notes.left_out(notes) == {"modality CT": 1, "unreadable image": 1}
    counts = image_notes.counts(notes)
    assert counts["grey_scale"] == {"8 bits as displayed": 2, "DICOM darkest to brightest": 1}
    assert counts["implausible"] == {"nearly black": 1} and counts["images_losing_a_quarter"] == 3
    image_notes.write_notes(tmp_path / "images.parquet", notes)
    assert image_notes.read_notes(tmp_path / "images.parquet") == notes


def test_implausible_images_go_where_that_is_set(tmp_path, studies):
    kept, notes = PixelStore.write(tmp_path / "pixels.npy", studies, tmp_path, 16, leave_out_implausible=True)
    assert [s.image_id for s in kept] == ["a.png", "film.dcm"]
    assert len(PixelStore.open(tmp_path / "pixels.npy")) == 2
    assert image_notes.left_out(notes)["implausible image: nearly black"] == 1


def test_many_of_another_modality_end_nothing_but_alone_they_do(tmp_path, studies):
    slices = [studies[3]] * 20
    kept, notes = PixelStore.write(tmp_path / "pixels.npy", [studies[0], *slices], tmp_path, 16)
    assert len(kept) == 1 and image_notes.left_out(notes) == {"modality CT": 20}
    with pytest.raises(UserError, match=r"none of 20 images can be used.*slice\.dcm.*CT"):
        PixelStore.write(tmp_path / "pixels.npy", slices, tmp_path, 16)


def test_geometry_is_followed_and_noted(tmp_path):
    picture_file(tmp_path / "a.png", np.pad(FILM, ((0, 0), (10, 10))))
    study = Study("a", "p", "s", "a.png", "train")
    pixels, note = image_notes.read_image(study, tmp_path, 20, Geometry("pad", cut_borders=True))
    assert pixels is not None and not pixels[:3].any() and not pixels[-3:].any() and pixels[4:-4].any()
    assert note.remarks == ("black borders cut",) and (note.height, note.width, note.lost) == (40, 80, 0)
    assert image_notes.read_image(study, tmp_path, 20, Geometry("crop", cut_borders=True))[1].lost == 0.3333


def test_what_is_no_notes_file_is_named(tmp_path):
    with pytest.raises(UserError, match="images.parquet does not exist"):
        image_notes.read_notes(tmp_path / "images.parquet")
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="images.parquet is not readable"):
        image_notes.read_notes(tmp_path / "images.parquet")
