"""One question with its answer, made from a report, and its form on disk: Parquet, read and written in batches.

What a report says is said of all images of its study; `as_question` makes of a pair what one image is asked in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.text_rows import read_rows, write_rows
from llmcxr.instructions.questions import LIST_QUESTION, Kind, Origin, QuestionAnswer
from llmcxr.metrics.scores import normalize_answer

# What is asked for. The paper tells four apart: presence, location, size or severity, type.
PairType = Literal["presence", "location", "severity", "type", "device", "normal", "count", "open"]
TYPES: tuple[PairType, ...] = get_args(PairType)
# What a check made of a pair: not checked yet; the report says so; the report neither says nor denies it; not to be used.
Verdict = Literal["", "entailed", "unknown", "rejected"]

_SIDES = {"left", "right", "both sides"}  # the answers of questions.py's side questions, normalised
_SOURCE = "`llmcxr synthesize-vqa`"


@dataclass(frozen=True, slots=True)
class QaPair:
    """A question about an image and its answer."""

    image_id: str  # of the image that is asked about
    study_id: str  # pairs of one report share it; duplicates are looked for among them
    question: str
    answer: str
    type: PairType
    origin: Origin
    evidence: str = ""  # the sentence of the report that answers it, "" where none is named
    finding: str = ""  # that is asked about, as the labeller spells it; "" where it names none, or several
    verdict: Verdict = ""
    reason: str = ""  # for which it was rejected: a name in checks.py; "" else

    @property
    def kept(self) -> bool:
        """Whether it was checked and may be used."""
        return self.verdict in ("entailed", "unknown")

    def as_question(self) -> QuestionAnswer:
        """What the task CXR-VQA asks."""
        kind: Kind = self.type
        if kind == "location" and normalize_answer(self.answer, False) in _SIDES:
            kind = "side"
        elif self.question == LIST_QUESTION:
            kind = "list"
        return QuestionAnswer(self.image_id, self.question, self.answer, kind, self.finding, self.origin)


def write_pairs(path: Path, pairs: Iterable[QaPair]) -> int:
    """Write a Parquet file, atomically, in as little memory as one batch takes; how many pairs there were."""
    return write_rows(path, QaPair, pairs)


def read_pairs(path: Path) -> Iterator[QaPair]:
    """The pairs of a file, or of all *.parquet of a folder in the order of their names, as they are read.

    `UserError` where something is missing, broken or of another version.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no pairs (*.parquet). Run {_SOURCE} first.")
    for file in files:
        yield from read_rows(file, QaPair, _SOURCE)
