"""What a model makes of patients whose findings are known: p(yes) of each finding, sides, and the report it writes.

Calibration is fitted to the readings of validation patients and measured on those of test patients. They are kept on disk as
they are made, so that what was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcxr.evaluation.predict import ModelUnderTest
from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import Sampling
from llmcxr.instructions.questions import SIDE_ANSWERS
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.study import Study
from llmcxr.tasks.cxr_to_report import MOST_TOKENS, side_of

_AT_ONCE = 16  # images of which reports are written together, and after which all is kept


@dataclass(frozen=True)
class ImageReading:
    """What the model makes of one image. `p_yes`: of each finding that it was asked about in tuning; `p_sides`: of each of
    `SIDE_ANSWERS`, for findings that are there on a known side; `report`: "" where none was written."""

    image_id: str
    p_yes: dict[str, float]
    p_sides: dict[str, list[float]]
    report: str = ""


def _kept(path: Path, model: str) -> dict[str, ImageReading]:
    """Readings of the same model in `path`, by image."""
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict) or found.get("model") != model:
        return {}
    try:
        rows = [ImageReading(**row) for row in found["rows"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold readings ({error}). Delete it and run the same again.") from error
    return {row.image_id: row for row in rows}


def read_images(
    model: ModelUnderTest,
    studies: Sequence[Study],
    candidates: int | None = 1,
    kept: Path | None = None,
    about: str = "",
) -> list[ImageReading]:
    """Readings of `studies`, in their order. `kept` takes them as they are made; those there of the same model (`about`) stay.

    Reports are the best of so many `candidates` (None: as many as the model writes by default; 0: no report).
    """
    own, names = model.model, list(model.model.info.findings)
    known = LabelSet(names)
    found = _kept(kept, about) if kept is not None else {}
    todo = [s for s in studies if s.image_id not in found]
    with tqdm(total=len(studies), initial=len(studies) - len(todo), desc="reading images", unit="image") as bar:
        for first in range(0, len(todo), _AT_ONCE):
            part = todo[first : first + _AT_ONCE]
            codes = model.codes([s.image_id for s in part])
            written = Sampling(max_new_tokens=MOST_TOKENS)
            texts = [""] * len(part) if candidates == 0 else own.reports(list(codes), written, candidates)
            for study, row, text in zip(part, codes, texts, strict=True):
                p_yes = own.presence_probabilities(row, names).astype(float).tolist()
                there = {known.spelling(f.name): None for f in study.truth if f.name in known}
                sided = [name for name in there if side_of(study, name) in SIDE_ANSWERS]
                p_sides = own.side_answers(row, sided).astype(float) if sided else np.zeros((0, 3))
                sides = dict(zip(sided, p_sides.tolist(), strict=True))
                yes = dict(zip(names, p_yes, strict=True))
                found[study.image_id] = ImageReading(study.image_id, yes, sides, text)
                bar.update()
            if kept is not None:
                write_json(kept, {"model": about, "rows": [asdict(row) for row in found.values()]})
    return [found[study.image_id] for study in studies]
