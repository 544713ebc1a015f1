"""Damaged files: one error that names the file, or a whole image; never another exception, never part of a picture."""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import RAMP, deep_png, dicom_file, lut
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.studies.grey_scale import Radiograph
from llmcxr.studies.image_notes import UNREADABLE, read_image
from llmcxr.studies.radiographs import read_radiograph
from llmcxr.studies.study import Study

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
FILM = (np.add.outer(np.arange(40), np.arange(48) * 31).astype(np.uint16) + 1000) % 4096


@functools.cache
def whole_files() -> dict[str, bytes]:
    """Files of every kind, by name."""
    grey, exif = Image.fromarray((FILM // 16).astype(np.uint8)), Image.Exif()
    exif[0x0112] = 6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deep_png(folder / "deep.png", np.stack([FILM] * 3, axis=-1))
        grey.save(folder / "a.png", exif=exif)
        grey.save(folder / "a.jpg", exif=exif)
        Image.fromarray(FILM).save(folder / "16.png")
        tags = {"RescaleSlope": 2, "RescaleIntercept": 1, "PixelPaddingValue": 0, "PixelAspectRatio": [2, 1]}
        dicom_file(folder / "window.dcm", FILM, WindowCenter=[2000, 1], WindowWidth=[900, 5], **tags)
        dicom_file(folder / "lut.dcm", FILM, "MONOCHROME1", VOILUTSequence=[lut(0, 16, np.arange(4096))])
        for name, syntax in {
            "rle.dcm": pydicom.uid.RLELossless,
            "j2k.dcm": pydicom.uid.JPEG2000Lossless,
            "jls.dcm": pydicom.uid.JPEGLSLossless,
        }.items():
            dataset = pydicom.dcmread(dicom_file(folder / "plain.dcm", FILM))
            try:
                dataset.compress(syntax)
            except (RuntimeError, NotImplementedError):  # no encoder for it here
                continue
            dataset.save_as(folder / name)
        for name in (
            "JPEG-lossy.dcm",
            "JPEGLSNearLossless_16.dcm",
            "JPEG2000.dcm",
            "image_dfl.dcm",
            "MR_small_RLE.dcm",
        ):
            dataset = pydicom.dcmread(SHIPPED / name)
            dataset.Modality = "CR"
            dataset.save_as(folder / name)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(folder: Path, name: str, content: bytes) -> Radiograph | None:
    """What is read of it; None where it is refused as it should be."""
    path = folder / name
    path.write_bytes(content)
    try:
        found = read_radiograph(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    pixels = found.pixels
    assert pixels.dtype == np.float32 and pixels.ndim == 2 and found.grey_scale
    assert pixels.min() >= 0 and pixels.max() <= 1
    return found


@pytest.mark.parametrize("name", sorted(whole_files()))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_changed_bytes(tmp_path_factory, name, data):
    content = bytearray(whole_files()[name])
    head = st.integers(0, min(len(content), 700) - 1)  # where headers are
    for place in data.draw(st.lists(head | st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    read(tmp_path_factory.getbasetemp(), name, bytes(content))


@pytest.mark.parametrize("name", sorted(whole_files()))
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_files_are_refused(tmp_path_factory, name, share):
    content = whole_files()[name]
    found = read(tmp_path_factory.getbasetemp(), name, content[: int(len(content) * share)])
    if found is not None:  # only what belongs to no pixel is missing
        whole = read(tmp_path_factory.getbasetemp(), name, content)
        assert whole is not None
        np.testing.assert_array_equal(found.pixels, whole.pixels)


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=300),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\0" * 128 + b"DICM"]),
)
def test_any_bytes(tmp_path_factory, content, start):
    for name in ("a.png", "a.dcm", "a"):
        read(tmp_path_factory.getbasetemp(), name, start + content)


@settings(max_examples=60, deadline=None)
@given(
    tags=st.dictionaries(
        st.sampled_from(
            [
                "WindowCenter",
                "WindowWidth",
                "RescaleSlope",
                "RescaleIntercept",
                "NumberOfFrames",
                "PixelAspectRatio",
                "PixelSpacing",
                "VOILUTFunction",
                "PresentationLUTShape",
            ]
        ),
        st.sampled_from(["", "abc", "nan", "1e400", "-1", "0", "1\\2\\3", "1e-300\\5", "INVERSE"]),
        max_size=4,
    )
)
def test_any_header_value(tmp_path_factory, tags):
    dataset = pydicom.dcmread(io.BytesIO(whole_files()["window.dcm"]))
    path = tmp_path_factory.getbasetemp() / "a.dcm"
    with pydicom.config.disable_value_validation():
        for name, value in tags.items():
            kind = pydicom.datadict.dictionary_VR(name)
            dataset[name] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(name), kind, len(value), value.encode(), 0, False, True
            )
        dataset.save_as(path)
    read(path.parent, path.name, path.read_bytes())


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.dcm")), ids=lambda p: p.name)
def test_pydicom_s_own_files(tmp_path, path):
    read(tmp_path, path.name, path.read_bytes())


def test_a_damaged_file_is_left_out_and_counted(tmp_path):
    """BytesLengthException, NotImplementedError and the like ended the whole stage."""
    dicom_file(tmp_path / "a.dcm", RAMP)
    content = bytearray((tmp_path / "a.dcm").read_bytes())
    place = content.index(b"\x28\x00\x10\x00US") + 6
    content[place : place + 4] = b"\x03\x00abc"[:4]  # Rows of three bytes
    (tmp_path / "a.dcm").write_bytes(content)
    pixels, note = read_image(Study("a", "p", "s", "a.dcm", "train"), tmp_path, 8, leave_out_implausible=False)
    assert pixels is None and note.left_out == UNREADABLE and "a.dcm" in note.error


def test_warnings_are_as_before_when_several_threads_have_read(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(whole_files()["a.png"])
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(read_radiograph, [picture] * 200):
            pass
    assert list(warnings.filters) == before
