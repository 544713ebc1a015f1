"""Files with known pixels in, known pixels out; every kind of bad file gives one error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from llmcxr.foundation.errors import UserError
from llmcxr.studies.radiographs import from_uint8, load_square, pixels_of_picture, read_radiograph, to_square, to_uint8

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80  # 0 .. 3760, 12 bits


def dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags: object) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = photometric
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_eight_bit_png_is_divided_by_255(tmp_path):
    pixels = np.array([[0, 51], [102, 255]], dtype=np.uint8)
    np.testing.assert_allclose(read_radiograph(save(tmp_path / "a.png", pixels)), [[0, 0.2], [0.4, 1]], atol=1e-6)


@pytest.mark.parametrize(("top", "bits"), [(65535, 16), (20000, 16), (4095, 12), (3000, 12), (1000, 10)])
def test_sixteen_bit_png_uses_the_smallest_depth_that_holds_it(tmp_path, top, bits):
    pixels = np.array([[0, top // 2], [top // 4, top]], dtype=np.uint16)
    expected = pixels / (2.0**bits - 1)
    np.testing.assert_allclose(read_radiograph(save(tmp_path / "a.png", pixels)), expected, atol=1e-6)


def test_colour_is_luminance_and_alpha_is_ignored(tmp_path):
    rgb = np.zeros((2, 2, 4), dtype=np.uint8)
    rgb[..., 3] = [[0, 255], [128, 1]]
    rgb[0, 0, :3], rgb[0, 1, :3], rgb[1, 0, :3] = (255, 0, 0), (0, 255, 0), (200, 200, 200)
    found = read_radiograph(save(tmp_path / "a.png", rgb))
    np.testing.assert_allclose(found, [[0.299, 0.587], [200 / 255, 0]], atol=3e-3)


def test_jpeg_of_a_smooth_image_is_close(tmp_path):
    pixels = np.linspace(20, 230, 64, dtype=np.uint8)[None].repeat(64, 0)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.jpg"), pixels / 255, atol=0.02)


def test_monochrome1_and_2_of_the_same_film_agree(tmp_path):
    white_bone = read_radiograph(dicom(tmp_path / "2.dcm", RAMP))
    black_bone = read_radiograph(dicom(tmp_path / "1.dcm", 4095 - RAMP, "MONOCHROME1"))
    np.testing.assert_allclose(white_bone, RAMP / 3760, atol=1e-6)
    np.testing.assert_allclose(black_bone, white_bone, atol=1e-6)
    window = {"WindowCenter": 2000, "WindowWidth": 1001}
    a = read_radiograph(dicom(tmp_path / "2.dcm", RAMP, **window))
    b = read_radiograph(dicom(tmp_path / "1.dcm", 4000 - RAMP, "MONOCHROME1", **window))
    assert a.min() == 0 and a.max() == 1
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_dicom_window_acts_on_rescaled_values(tmp_path):
    # value = stored * 2 - 100; LINEAR window of centre 1000.5 and width 1001 shows 500 .. 1500
    path = dicom(
        tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[1000.5, 3], WindowWidth=[1001, 4]
    )
    np.testing.assert_allclose(read_radiograph(path), np.clip((RAMP * 2.0 - 100 - 500) / 1000, 0, 1), atol=1e-6)


def test_dicom_sigmoid_window(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(read_radiograph(path), 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)), atol=1e-6)


def test_dicom_voi_lut(tmp_path):
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 16], (np.arange(4096) ** 2 // 256).astype("<u2").tobytes()
    path = dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[lut])
    np.testing.assert_allclose(read_radiograph(path), (RAMP.astype(int) ** 2 // 256) / 65535, atol=1e-6)


def test_dicom_compressed_and_without_preamble(tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    expected = read_radiograph(path)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "rle.dcm"), expected)
    (tmp_path / "plain").write_bytes(path.read_bytes())  # known by its content
    np.testing.assert_array_equal(read_radiograph(tmp_path / "plain"), expected)


def test_dicom_jpeg_2000(tmp_path):
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    path = dicom(tmp_path / "a.dcm", RAMP.repeat(16, 0).repeat(16, 1))
    expected = read_radiograph(path)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.JPEG2000Lossless)
    dataset.save_as(tmp_path / "packed.dcm")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "packed.dcm"), expected)


def test_dicom_of_an_unreadable_compression_says_what_to_install(tmp_path):
    dataset = pydicom.dcmread(dicom(tmp_path / "a.dcm", RAMP))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    dataset.PixelData = pydicom.encaps.encapsulate([b"not pixels"])
    dataset.save_as(tmp_path / "packed.dcm")
    with pytest.raises(UserError, match="packed.dcm.*install pylibjpeg"):
        read_radiograph(tmp_path / "packed.dcm")


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    whole = save(folder / "whole.jpg", noise).read_bytes()
    files = {
        "truncated jpeg": ("t.jpg", whole[: len(whole) // 2], "truncated"),
        "truncated png": ("t.png", save(folder / "whole.png", noise).read_bytes()[:900], "decoded"),
        "text": ("text.png", b"this is no image", "not a PNG, JPEG or DICOM"),
        "empty": ("empty.png", b"", "empty"),
        "text as dicom": ("text.dcm", b"hello" * 100, "text.dcm"),
        "truncated dicom": ("t.dcm", dicom(folder / "w.dcm", RAMP).read_bytes()[:-40], "decoded"),
    }
    result = {}
    for kind, (name, content, message) in files.items():
        (folder / name).write_bytes(content)
        result[kind] = (folder / name, message)
    result["constant"] = (save(folder / "c.png", np.full((5, 5), 7, np.uint8)), "same value everywhere")
    result["constant dicom"] = (dicom(folder / "c.dcm", np.full((5, 5), 7)), "same value everywhere")
    result["missing"] = (folder / "nowhere.png", "cannot be opened")
    result["palette dicom"] = (dicom(folder / "p.dcm", RAMP, "PALETTE COLOR"), "PALETTE COLOR")
    result["frames"] = (dicom(folder / "f.dcm", np.stack([RAMP, RAMP]), NumberOfFrames=2), "2 frames")
    result["no pixels"] = (dicom(folder / "n.dcm", RAMP, PixelData=None), "no pixel data")
    result["window of no width"] = (
        dicom(folder / "z.dcm", RAMP, WindowCenter=5, WindowWidth=0),
        "window cannot be applied",
    )
    return result


def test_every_bad_file_is_one_error_that_names_it(tmp_path):
    for kind, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=message) as caught:
            read_radiograph(path)
        assert str(path) in str(caught.value), kind


def test_to_square_crops_the_centre_and_keeps_the_scale():
    pixels = np.zeros((40, 80), dtype=np.float32)
    pixels[:, 20:60] = 1  # exactly the centre square
    np.testing.assert_allclose(to_square(pixels, 10)[:, 1:-1], 1, atol=0.02)  # the filter rings at the edge
    assert to_square(np.roll(pixels, 4, 1), 10)[0, 0] < -0.8  # one output pixel is four input pixels
    tall = to_square(pixels.T, 10)
    np.testing.assert_allclose(tall, to_square(pixels, 10).T, atol=1e-6)


def test_to_square_range_mean_and_mirror():
    pixels = np.random.default_rng(1).random((50, 71), dtype=np.float32)
    square = to_square(pixels, 16)
    assert square.shape == (16, 16) and square.dtype == np.float32 and np.abs(square).max() <= 1
    np.testing.assert_allclose(to_square(pixels[:, ::-1], 16), square[:, ::-1], atol=1e-5)
    smooth = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    np.testing.assert_allclose(to_square(smooth, 16)[3, 2:-2], (np.arange(2, 14) + 0.5) / 8 - 1, atol=0.01)


def test_uint8_round_trip_and_ends():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(np.array([-1.0, 1.0, -3.0, 3.0, 0.0])).tolist() == [0, 255, 0, 255, 128]


def test_fast_path_equals_the_slow_one(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(2).integers(0, 256, (32, 32), dtype=np.uint8))
    np.testing.assert_array_equal(load_square(path, 32), to_square(read_radiograph(path), 32))


def test_a_picture_is_read_as_its_file_is(tmp_path):
    rng = np.random.default_rng(3)
    pictures = {
        "I;16": Image.fromarray(rng.integers(0, 4096, (8, 8), dtype=np.uint16)),
        "L": Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)),
        "RGBA": Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)),
        "P": Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).quantize(),
    }
    for mode, picture in pictures.items():
        assert picture.mode == mode
        picture.save(tmp_path / "a.png")
        np.testing.assert_array_equal(pixels_of_picture(picture), read_radiograph(tmp_path / "a.png"))
    deep = pixels_of_picture(pictures["I;16"])
    np.testing.assert_array_equal(pixels_of_picture(pictures["I;16"].convert("I")), deep)
    assert deep.dtype == np.float32 and len(np.unique(deep)) > 50  # 8 bits saturated at 255 of 4095


def test_pictures_of_real_numbers_are_in_their_range():
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(pixels_of_picture(Image.fromarray(values)), values)
    for wrong in (values * 255, values - 0.5, values * np.nan, np.full((4, 4), -7, np.int32)):
        with pytest.raises(ValueError, match="should be 0 to"):
            pixels_of_picture(Image.fromarray(wrong))


def test_windows_are_as_the_standard_has_them(tmp_path):
    """PS3.3 C.11.2.1.2: ours until pydicom did it, on values beyond both ends."""
    for function, expected in {
        "LINEAR": np.clip((RAMP - 1999.5) / 999 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((RAMP - 2000.0) / 1000 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)),
    }.items():
        path = dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function)
        np.testing.assert_allclose(read_radiograph(path), expected, atol=1e-6)
