"""One question with its answer, made from a report, and its form on disk: Parquet, read and written in batches.

What a report says is said of all images of its study; `as_question` makes of a pair what one image is asked in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.instructions.questions import Kind, Origin, QuestionAnswer
from llmcxr.metrics.scores import normalize_answer

# What is asked for. The paper tells four apart: presence, location, size or severity, type.
PairType = Literal["presence", "location", "severity", "type", "device", "normal", "count", "open"]
TYPES: tuple[PairType, ...] = get_args(PairType)
# What a check made of a pair: not checked yet; the report says so; the report neither says nor denies it; not to be used.
Verdict = Literal["", "entailed", "unknown", "rejected"]

_SIDES = {"left", "right", "both sides"}  # the answers of questions.py's side questions, normalised
_BATCH = 16_384  # pairs of a row group


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
        sided = self.type == "location" and normalize_answer(self.answer, False) in _SIDES
        kind: Kind = "side" if sided else self.type
        return QuestionAnswer(self.image_id, self.question, self.answer, kind, self.finding, self.origin)


_NAMES = [field.name for field in dataclasses.fields(QaPair)]
SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in _NAMES])


def write_pairs(path: Path, pairs: Iterable[QaPair]) -> int:
    """Write a Parquet file, atomically, in as little memory as one batch takes; how many pairs there were."""
    count = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        stream = iter(pairs)
        while batch := list(islice(stream, _BATCH)):
            columns = [pa.array([getattr(pair, name) for pair in batch], pa.string()) for name in _NAMES]
            writer.write_table(pa.table(columns, schema=SCHEMA))
            count += len(batch)
    return count


def read_pairs(path: Path) -> Iterator[QaPair]:
    """The pairs of a file, or of all *.parquet of a folder in the order of their names, as they are read.

    `UserError` where something is missing, broken or of another version.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no pairs (*.parquet). Run `llmcxr synthesize-vqa` first.")
    for file in files:
        yield from _read_file(file)


def _read_file(path: Path) -> Iterator[QaPair]:
    try:
        with pq.ParquetFile(path) as held:
            if missing := [name for name in _NAMES if name not in held.schema_arrow.names]:
                raise UserError(
                    f"{path} lacks the columns {', '.join(missing)}: it holds no pairs, or another version wrote them. "
                    "Remove it and make them again."
                )
            for batch in held.iter_batches(_BATCH, columns=_NAMES):
                for row in zip(*(batch.column(name).to_pylist() for name in _NAMES), strict=True):
                    yield _checked(QaPair(*row), path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run `llmcxr synthesize-vqa` first.") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}). Remove it and make it again.") from error


def _checked(pair: QaPair, path: Path) -> QaPair:
    for name, allowed in (("type", TYPES), ("origin", get_args(Origin)), ("verdict", get_args(Verdict))):
        if getattr(pair, name) not in allowed:
            raise UserError(
                f"{path}: a pair of {pair.study_id} has the {name} {getattr(pair, name)!r}, which is none of "
                f"{', '.join(filter(None, allowed))}. Remove the file and make it again."
            )
    return pair
