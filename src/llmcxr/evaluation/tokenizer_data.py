"""Radiographs to measure image tokenizers on: files, a run's split, or what a recipe's source reads; at any size.

Letters: N images, S side in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.foundation.yaml_text import read_yaml
from llmcxr.studies.geometry import CENTRE_CROP, Geometry
from llmcxr.studies.image_files import image_files, read_squares
from llmcxr.studies.study import SPLITS, Study, read_manifest


@dataclass(frozen=True)
class Radiographs:
    """A data set by name: N studies (of plain files without labels, each a patient of its own), and their images in that order.

    `read(S)` gives uint8 [S, S] of each, or why it cannot be read.
    """

    name: str
    studies: Sequence[Study]
    read: Callable[[int], Iterator[np.ndarray | str]]


def of_files(given: Sequence[Path]) -> Radiographs:
    """Files, and folders of them. `UserError` where there are none."""
    files = image_files(given)
    studies = [Study(str(path), str(path), str(path), str(path), "test") for path in files]
    name = ", ".join(path.name or str(path) for path in given[:3]) + ", ..." * (len(given) > 3)
    return Radiographs(name, studies, lambda size: read_squares(files, size))


def of_studies(name: str, studies: Sequence[Study], folder: Path, split: str, geometry: Geometry) -> Radiographs:
    """Those of a split (or all) whose image files lie below `folder`. `UserError` where there are none."""
    chosen = [study for study in studies if split in (study.split, "all")]
    if not chosen:
        own = [other for other in SPLITS if any(study.split == other for study in studies)]
        there = f" It has {', '.join(own)}: set --split to one of them, or to all." if own else ""
        raise UserError(f"{name} has no radiograph in the split {split}.{there}")
    paths = [folder / study.image_path for study in chosen]  # an absolute path stays
    label = name if split == "all" else f"{name}, {split}"
    return Radiographs(label, chosen, functools.partial(read_squares, paths, geometry=geometry))


def of_run(folder: Path, split: str) -> Radiographs:
    """A run whose stage `studies` is done, as it reads its images. `UserError` where the folder is none."""
    path = folder / "recipe.yaml"
    said: Any = read_yaml(path) if path.is_file() else {}
    geometry = said.get("source", {}).get("geometry") if isinstance(said, dict) else None
    own = CENTRE_CROP if geometry is None else build_settings(Geometry, geometry, f"{path}, source.geometry,")
    return of_studies(folder.name, read_manifest(folder / "manifest.parquet"), folder, split, own)
