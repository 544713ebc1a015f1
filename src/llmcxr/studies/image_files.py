"""Radiograph files by name or folder, as squares in memory; what cannot be read is listed, not dropped.

Letters: N images, S side in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workers import in_processes
from llmcxr.studies.geometry import CENTRE_CROP, Geometry
from llmcxr.studies.radiographs import load_square, to_uint8

SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom"}


def image_files(given: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of a radiograph's suffix in folders that are named, sorted. `UserError` for none."""
    files = []
    for path in given:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist. Give radiographs (PNG, JPEG, DICOM), or a folder of them.")
    if not files:
        raise UserError(f"{', '.join(map(str, given))}: there is no radiograph there ({', '.join(sorted(SUFFIXES))}).")
    return files


def _square(path: str | Path, size: int, geometry: Geometry) -> np.ndarray | str:
    try:
        return to_uint8(load_square(path, size, geometry))
    except UserError as error:
        return str(error)


def read_squares(
    paths: Sequence[str | Path], size: int, geometry: Geometry = CENTRE_CROP, chunk: int = 32
) -> Iterator[np.ndarray | str]:
    """uint8 [S, S] of each file, in order, or why it cannot be read; decoded in worker processes where they are many."""
    yield from in_processes(
        functools.partial(_square, size=size, geometry=geometry), paths, "read", "image", chunk=chunk, worth=4 * chunk
    )
