"""One image of a data set read, with a note of how: what the data page counts and shows.

Notes are kept in the run's `images.parquet`, one row an image that was tried, also of those left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.studies.dicom import OtherModalityError
from llmcxr.studies.geometry import CENTRE_CROP, Geometry, inside_borders, lost
from llmcxr.studies.plausibility import implausible
from llmcxr.studies.radiographs import network_square, read_radiograph, to_uint8
from llmcxr.studies.study import Study

UNREADABLE = "unreadable image"


@dataclass(frozen=True)
class ImageNote:
    """How one image was read."""

    image_id: str
    image_path: str  # as in the manifest
    height: int = 0  # of the file, in pixels; 0 where it could not be read
    width: int = 0
    grey_scale: str = ""  # how it was found
    remarks: tuple[str, ...] = ()  # orientation, padding, loss, faults of the header
    lost: float = 0.0  # share of its area outside the square
    implausible: str = ""  # why it does not look like a radiograph; "" where it does
    left_out: str = ""  # the reason, in words that can be counted; "" where it was kept
    error: str = ""  # the whole message, where it could not be read


def read_image(
    study: Study,
    root: Path,
    size: int,
    geometry: Geometry = CENTRE_CROP,
    leave_out_implausible: bool = False,
) -> tuple[np.ndarray | None, ImageNote]:
    """(uint8 [size, size], how it was read) of a study's image; None where it is left out.

    A relative path is below `root`. Whatever is wrong with the file is in the note: nothing is raised.
    """
    path = Path(root) / study.image_path
    try:
        found = read_radiograph(path)
        pixels = to_uint8(network_square(found, size, geometry))
    except UserError as error:
        reason = f"modality {error.modality}" if isinstance(error, OtherModalityError) else UNREADABLE
        return None, ImageNote(study.image_id, study.image_path, left_out=reason, error=str(error))
    doubt = implausible(pixels)
    left_out = f"implausible image: {doubt}" if doubt and leave_out_implausible else ""
    (H, W), remarks = found.pixels.shape, found.remarks
    kept = found.pixels[inside_borders(found.pixels)] if geometry.cut_borders else found.pixels
    kept_H, kept_W = kept.shape
    if (kept_H, kept_W) != (H, W):
        remarks = (*remarks, "black borders cut")
    note = ImageNote(
        study.image_id,
        study.image_path,
        height=H,
        width=W,
        grey_scale=found.grey_scale,
        remarks=remarks,
        lost=round(lost(kept_H, kept_W, geometry), 4),
        implausible=doubt,
        left_out=left_out,
    )
    return None if left_out else pixels, note


def write_notes(path: Path, notes: Sequence[ImageNote]) -> None:
    """Write `images.parquet`."""
    import pandas as pd  # slow to load, and not needed for using a model

    frame = pd.DataFrame([asdict(note) for note in notes], columns=[f.name for f in fields(ImageNote)])
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_notes(path: Path) -> list[ImageNote]:
    """Read what `write_notes` wrote. `UserError` where the file is missing, broken or of another version."""
    import pandas as pd

    try:
        rows = pd.read_parquet(path).to_dict("records")
        return [ImageNote(**{**row, "remarks": tuple(row["remarks"])}) for row in rows]  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run `llmcxr run` or its `studies` stage first.") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not readable ({error}). Delete it and run the `studies` stage again.") from error


def left_out(notes: Sequence[ImageNote]) -> Counter[str]:
    """How many images were left out, by reason."""
    return Counter(note.left_out for note in notes if note.left_out)


def counts(notes: Sequence[ImageNote]) -> dict[str, Any]:
    """What the notes of a data set say together, of the images that could be read: for `studies.json`."""
    read = [note for note in notes if not note.error]
    return {
        "grey_scale": dict(Counter(note.grey_scale for note in read).most_common()),
        "remarks": dict(Counter(remark for note in read for remark in note.remarks).most_common()),
        "implausible": dict(Counter(note.implausible for note in read if note.implausible).most_common()),
        "area_lost": round(sum(note.lost for note in read) / len(read), 4) if read else 0.0,
        "images_losing_a_quarter": sum(note.lost > 0.25 for note in read),
    }
