"""Image files with known pixels, for the tests of what reads them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80  # 0 .. 3760, 12 bits


def film(H: int = 128, W: int | None = None) -> np.ndarray:
    """A sketch of a chest, uint8: light body, dark lungs, black air at the upper corners."""
    W = W or H
    y, x = np.mgrid[0:H, 0:W] / np.array([H, W]).reshape(2, 1, 1)
    body = 150 + 40 * (np.abs(x - 0.5) < 0.07)
    lungs = sum(np.exp(-(((x - c) / 0.11) ** 4) - ((y - 0.42) / 0.27) ** 4) for c in (0.3, 0.7))
    air = (y < 0.15) & (np.abs(x - 0.5) > 0.3)
    grain = np.random.default_rng(0).normal(0, 3, (H, W))
    return np.clip(np.where(air, 5, body - 90 * lungs) + grain, 0, 255).astype(np.uint8)


def dicom_file(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags: object) -> Path:
    """A computed radiograph of 12 bits; `tags` replace the header's, None deletes them."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "CR"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, int(pixels.min() < 0)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = photometric
    dataset.add_new("PixelData", "OW", pixels.astype("<i2" if pixels.min() < 0 else "<u2").tobytes())
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(first: int, bits: int, data: np.ndarray) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) % 2**16, first, bits])
    item.add_new("LUTData", "OW", data.astype("<u2").tobytes())
    return item


def picture_file(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """PNG or JPEG by Pillow."""
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def deep_png(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits [H, W, C] with 2 (grey, alpha), 3 or 4 channels, which Pillow does not write."""
    kind = {2: 4, 3: 2, 4: 6}[pixels.shape[2]]

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path
