"""DICOM headers of every kind: known pixels in, known pixels out, and what was decided is said."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from image_files import RAMP, dicom_file, lut
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from llmcxr.foundation.errors import UserError
from llmcxr.studies import dicom
from llmcxr.studies.dicom import OtherModalityError, read_header
from llmcxr.studies.grey_scale import Radiograph
from llmcxr.studies.radiographs import read_radiograph

FILM = np.add.outer(np.arange(64), np.arange(64) * 31).astype(np.uint16) + 1000  # 1000 .. 3016


def shown(path: Path) -> np.ndarray:
    return read_radiograph(path).pixels


def close(found: Radiograph | np.ndarray, expected: np.ndarray, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(found.pixels if isinstance(found, Radiograph) else found, expected, atol=atol)


def test_monochrome1_and_2_of_the_same_film_agree(tmp_path):
    white_bone = shown(dicom_file(tmp_path / "2.dcm", RAMP))
    black_bone = shown(dicom_file(tmp_path / "1.dcm", 4095 - RAMP, "MONOCHROME1"))
    close(white_bone, RAMP / 3760)
    close(black_bone, white_bone)
    window = {"WindowCenter": 2000, "WindowWidth": 1001}
    a = shown(dicom_file(tmp_path / "2.dcm", RAMP, **window))
    b = shown(dicom_file(tmp_path / "1.dcm", 4000 - RAMP, "MONOCHROME1", **window))
    assert a.min() == 0 and a.max() == 1
    close(a, b, 2e-3)


def test_a_window_acts_on_rescaled_values(tmp_path):
    # value = stored * 2 - 100; LINEAR window of centre 1000.5 and width 1001 shows 500 .. 1500
    path = dicom_file(
        tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[1000.5, 3], WindowWidth=[1001, 4]
    )
    found = read_radiograph(path)
    close(found, np.clip((RAMP * 2.0 - 100 - 500) / 1000, 0, 1))
    assert found.grey_scale == "DICOM window LINEAR" and found.remarks == ()


def test_windows_are_as_the_standard_has_them(tmp_path):
    """PS3.3 C.11.2.1.2, on values beyond both ends."""
    for function, expected in {
        "LINEAR": np.clip((RAMP - 1999.5) / 999 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((RAMP - 2000.0) / 1000 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)),
    }.items():
        path = dicom_file(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function)
        close(read_radiograph(path), expected)
        assert read_radiograph(path).grey_scale == f"DICOM window {function}"


@pytest.mark.parametrize(
    ("center", "width", "remark"),
    [
        ([5, 2000], [0, 1000], "window without a width, not used"),
        ([9000, 2000], [500, 1000], "window LINEAR outside the data, not used"),
        ([30000, 2000], [60000, 1000], "window LINEAR far wider than the data, not used"),
    ],
)
def test_the_first_window_that_shows_the_data_is_taken(tmp_path, center, width, remark):
    found = read_radiograph(dicom_file(tmp_path / "a.dcm", FILM, WindowCenter=center, WindowWidth=width))
    close(found, np.clip((FILM - 1999.5) / 999 + 0.5, 0, 1))
    assert found.grey_scale == "DICOM window LINEAR" and found.remarks == (remark,)
    found = read_radiograph(dicom_file(tmp_path / "a.dcm", FILM, WindowCenter=center[0], WindowWidth=width[0]))
    close(found, shown(dicom_file(tmp_path / "plain.dcm", FILM)))
    assert found.grey_scale == "DICOM darkest to brightest" and found.remarks == (remark,)


def test_a_voi_lut_is_of_as_many_bits_as_its_data_use(tmp_path):
    table = np.arange(4096) ** 2 // 256
    close(
        read_radiograph(dicom_file(tmp_path / "a.dcm", RAMP, VOILUTSequence=[lut(0, 16, table)])), table[RAMP] / 65535
    )
    found = read_radiograph(dicom_file(tmp_path / "a.dcm", RAMP, VOILUTSequence=[lut(0, 16, table // 16)]))
    close(found, table[RAMP] // 16 / 4095)
    assert found.grey_scale == "DICOM VOI LUT"
    eight = lut(0, 8, table // 256)  # more entries than 8 bits count
    close(read_radiograph(dicom_file(tmp_path / "a.dcm", RAMP, VOILUTSequence=[eight])), table[RAMP] // 256 / 255)


def test_a_modality_lut_and_its_signed_beginning(tmp_path):
    table = np.arange(4096)[::-1] * 3
    path = dicom_file(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[lut(0, 16, table)])
    close(read_radiograph(path), 1 - RAMP / 3760)
    signed = RAMP.astype(np.int16) - 2000
    item = lut(2**16 - 2000, 16, np.arange(4096) * 16)  # -2000, written as unsigned
    close(read_radiograph(dicom_file(tmp_path / "a.dcm", signed, VOILUTSequence=[item])), RAMP * 16 / 65535)


def test_a_lut_that_cannot_be_read_gives_way(tmp_path):
    for item in (lut(0, 77, np.arange(4096)), Dataset()):
        found = read_radiograph(dicom_file(tmp_path / "a.dcm", RAMP, VOILUTSequence=[item]))
        close(found, RAMP / 3760)
        assert found.remarks == ("VOI LUT or window unreadable, not used",)


def test_padding_and_hot_pixels_do_not_set_the_range(tmp_path):
    plain = shown(dicom_file(tmp_path / "plain.dcm", FILM))
    film = FILM.copy()
    film[30, 30], film[9, 12] = 4095, 0
    hot = shown(dicom_file(tmp_path / "hot.dcm", film))
    close(np.median(np.abs(hot - plain)), 0, 2e-3)
    signed = FILM.astype(np.int16)
    signed[:, :20] = -2000
    for value in (-2000, 2**16 - 2000):
        path = dicom_file(tmp_path / "a.dcm", signed, BitsStored=16, HighBit=15)
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        dataset.save_as(path)
        found = read_radiograph(path)
        close(found.pixels[:, 20:], shown(dicom_file(tmp_path / "b.dcm", FILM[:, 20:])))
        assert not found.pixels[:, :20].any() and found.remarks == ("padding made black",)


def test_padding_is_black_and_what_it_does_not_reach_stays(tmp_path):
    film = 4095 - FILM
    film[:10], film[40:44, 40:44] = 0, 0  # border, and a lead marker: white in MONOCHROME1
    found = shown(dicom_file(tmp_path / "a.dcm", film, "MONOCHROME1", PixelPaddingValue=0))
    assert not found[:10].any() and (found[40:44, 40:44] == 1).all()


def test_the_presentation_lut_shape_decides_once(tmp_path):
    upright = shown(dicom_file(tmp_path / "a.dcm", RAMP))
    for photometric, shape, inverted in [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
    ]:
        found = read_radiograph(dicom_file(tmp_path / "a.dcm", RAMP, photometric, PresentationLUTShape=shape))
        close(found, 1 - upright if inverted else upright)
        assert bool(found.remarks) == ((photometric == "MONOCHROME1") != inverted)


def test_what_a_header_lacks_is_filled_in_and_said(tmp_path):
    path = tmp_path / "a.dcm"
    for missing, remark in {
        "PixelRepresentation": ("no PixelRepresentation, taken as 0",),
        "SamplesPerPixel": ("no SamplesPerPixel, taken as 1",),
        "HighBit": (),
        "Modality": (),
        "BitsStored": ("no BitsStored, taken as 16",),
    }.items():
        found = read_radiograph(dicom_file(path, RAMP, **{missing: None}))
        close(found, RAMP / 3760)
        assert found.remarks == remark
    for slope, intercept in (("", ""), ("", 5), (2, "")):
        close(read_radiograph(dicom_file(path, RAMP, RescaleSlope=slope, RescaleIntercept=intercept)), RAMP / 3760)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, None])
def test_files_without_preamble_and_meta_and_suffix(tmp_path, syntax):
    dataset = Dataset()
    dataset.update({e.tag: e for e in pydicom.dcmread(dicom_file(tmp_path / "a.dcm", RAMP))})
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dataset["PixelData"].value = RAMP.astype("<u2" if little else ">u2").tobytes()
    for name in ("b.dcm", "IM0001"):
        dataset.save_as(tmp_path / name, implicit_vr=implicit, little_endian=little)
        assert (tmp_path / name).read_bytes()[128:132] != b"DICM"
        found = read_radiograph(tmp_path / name)
        close(found, RAMP / 3760)
        assert found.remarks == ("no transfer syntax, taken as it lies",)


def test_bits_beyond_those_that_are_stored(tmp_path):
    overlay = Dataset()
    overlay.add_new(0x60000102, "US", 12)
    with_overlay = RAMP | (np.arange(48).reshape(6, 8) % 2 << 12).astype(np.uint16)
    path = dicom_file(tmp_path / "a.dcm", with_overlay)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60000102, "US", 12)
    dataset.save_as(path)
    close(read_radiograph(path), RAMP / 3760)  # an overlay in the unused bits is no part of the image
    found = read_radiograph(dicom_file(path, RAMP, BitsStored=10, HighBit=9))
    close(found, RAMP / 3760)
    assert found.remarks == ("values of more bits than BitsStored, all taken",)
    close(read_radiograph(dicom_file(path, RAMP << 4, HighBit=15)), RAMP / 3760)  # 12 bits in the upper part
    signed = RAMP.astype(np.int16) - 2000
    close(read_radiograph(dicom_file(path, signed)), RAMP / 3760)
    close(read_radiograph(dicom_file(path, signed & 0x0FFF, PixelRepresentation=1)), RAMP / 3760)  # not extended


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    for tags in ({"PixelAspectRatio": [2, 1]}, {"ImagerPixelSpacing": [0.4, 0.2]}):
        found = read_radiograph(dicom_file(tmp_path / "a.dcm", FILM, **tags))
        assert found.pixels.shape == (128, 64) and "pixels not square" in found.remarks[0]
        close(found.pixels[::2], shown(dicom_file(tmp_path / "b.dcm", FILM)), 0.02)
    assert shown(dicom_file(tmp_path / "a.dcm", FILM, PixelSpacing=[0.143, 0.143])).shape == (64, 64)
    with pytest.raises(UserError, match="PixelAspectRatio of 900 to 1"):
        read_radiograph(dicom_file(tmp_path / "a.dcm", FILM, PixelAspectRatio=[900, 1]))


def test_a_mirrored_film_is_said(tmp_path):
    for orientation, said in ((["L", "F"], 0), (["R", "F"], 1), (["A", "F"], 0)):
        found = read_radiograph(dicom_file(tmp_path / "a.dcm", RAMP, PatientOrientation=orientation))
        assert len(found.remarks) == said
        close(found, RAMP / 3760)


def test_compressed_and_without_suffix(tmp_path):
    path = dicom_file(tmp_path / "a.dcm", RAMP)
    expected = shown(path)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(shown(tmp_path / "rle.dcm"), expected)
    (tmp_path / "plain.png").write_bytes(path.read_bytes())  # known by its content
    np.testing.assert_array_equal(shown(tmp_path / "plain.png"), expected)


def test_jpeg_2000_and_a_header_that_contradicts_it(tmp_path):
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    path = dicom_file(tmp_path / "a.dcm", RAMP.repeat(16, 0).repeat(16, 1))
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.JPEG2000Lossless)
    dataset.save_as(tmp_path / "packed.dcm")
    np.testing.assert_array_equal(shown(tmp_path / "packed.dcm"), shown(path))
    dataset.Rows, dataset.LossyImageCompression = 90, "01"
    dataset.save_as(tmp_path / "packed.dcm")
    with pytest.raises(UserError, match=r"96 x 128 pixels, its header says 90 x 128"):
        read_radiograph(tmp_path / "packed.dcm")


def packed(path: Path, syntax: str) -> Path:
    dataset = pydicom.dcmread(dicom_file(path, RAMP))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = pydicom.encaps.encapsulate([b"not pixels"])
    dataset.save_as(path)
    return path


def test_every_error_names_the_file_and_the_true_reason(tmp_path):
    path = tmp_path / "a.dcm"
    cases = {
        "MPEG2": lambda: packed(path, pydicom.uid.MPEG2MPML),
        "JPEG": lambda: packed(path, pydicom.uid.JPEGLosslessSV1),
        "Rows or Columns is missing": lambda: dicom_file(path, RAMP, Rows=None),
        "0 rows": lambda: dicom_file(path, RAMP, Rows=0),
        "BitsAllocated is missing": lambda: dicom_file(path, RAMP, BitsAllocated=None),
        "contradict each other": lambda: dicom_file(path, RAMP, BitsStored=14, HighBit=9),
        "RescaleSlope is 0": lambda: dicom_file(path, RAMP, RescaleSlope=0, RescaleIntercept=1),
        "The number of bytes|less than|expected": lambda: dicom_file(path, RAMP, Rows=7),
        "holds no pixel data": lambda: dicom_file(path, RAMP, PixelData=None),
        "2 frames": lambda: dicom_file(path, np.stack([RAMP, RAMP]), NumberOfFrames=2),
        "PALETTE COLOR": lambda: dicom_file(path, RAMP, "PALETTE COLOR"),
        "same value everywhere": lambda: dicom_file(path, np.full((5, 5), 7)),
        "more than any radiograph has": lambda: dicom_file(path, RAMP, Rows=60000, Columns=60000),
    }
    for reason, make in cases.items():
        make()
        with pytest.raises(UserError, match=f"a.dcm.*(?:{reason})") as caught:
            read_radiograph(path)
        assert "install" not in str(caught.value), reason


@pytest.mark.parametrize("modality", ["CT", "SEG", "RTDOSE", "MR", "US"])
def test_other_modalities_are_refused_by_name(tmp_path, modality):
    path = dicom_file(tmp_path / "a.dcm", RAMP, Modality=modality)
    with pytest.raises(OtherModalityError, match=f"a.dcm is no radiograph: its modality is {modality}"):
        read_radiograph(path)


def test_the_header_alone(tmp_path):
    header = read_header(dicom_file(tmp_path / "a.dcm", RAMP, PatientID="p1", ViewPosition="PA"))
    assert header.PatientID == "p1" and "PixelData" not in header
    (tmp_path / "b.dcm").write_bytes(b"hello" * 100)
    for name in ("b.dcm", "nowhere.dcm"):
        with pytest.raises(UserError, match=name):
            read_header(tmp_path / name)


def test_what_inflates_beyond_all_radiographs_is_refused_before_it_does(tmp_path, monkeypatch):
    path = dicom_file(tmp_path / "a.dcm", FILM)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    np.testing.assert_array_equal(shown(path), shown(dicom_file(tmp_path / "b.dcm", FILM)))
    head = path.read_bytes()
    start = 132 + 12 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**24)
    with open(path, "wb") as stream:
        stream.write(head[:start])
        for _ in range(4):
            stream.write(deflate.compress(zeros))
        stream.write(deflate.flush())
    monkeypatch.setattr(dicom, "_MOST_BYTES", 2**25)
    tracemalloc.start()
    with pytest.raises(UserError, match="a.dcm inflates to more than any radiograph takes"):
        read_radiograph(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
