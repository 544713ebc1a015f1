"""What the model answered: one `Prediction` a question put to it, kept so that every score can be computed again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """One answer of the model beside what was expected.

    `task`: "report", "draw", "question", ...; `kind`: of question, or of report. `p_yes` in [0, 1] is the probability
    of "yes" against "no", and `truth` 1 or 0 whether "yes" is right; both None where the question is not of that form.
    `extra` holds JSON values.
    """

    task: str
    image_id: str
    patient_id: str
    kind: str
    question: str
    reference: str
    response: str
    p_yes: float | None = None
    truth: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


COLUMNS = [f.name for f in fields(Prediction)]


def predictions_frame(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """One row a prediction; p_yes is float (NaN: none), truth is Int64 (NA: none), extra stays a dict."""
    frame = pd.DataFrame([[getattr(p, name) for name in COLUMNS] for p in predictions], columns=COLUMNS)
    return frame.astype({"p_yes": "float64", "truth": "Int64"})


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write `predictions` as parquet, atomically; `extra` is JSON text there."""
    frame = predictions_frame(predictions)
    frame["extra"] = [json.dumps(p.extra, ensure_ascii=False) for p in predictions]
    texts = [name for name in COLUMNS if name not in ("p_yes", "truth")]
    with atomic_path(path) as temporary:
        frame.astype(dict.fromkeys(texts, "string")).to_parquet(temporary, index=False)


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote. `UserError` where the file is missing, broken or lacks a column."""
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run the `evaluate` stage first.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable parquet ({error}). Delete it and run `evaluate` again.") from error
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise UserError(f"{path} lacks the columns {missing}. Delete it and run the `evaluate` stage again.")
    return [
        Prediction(
            **{name: row[name] for name in COLUMNS[:7]},
            p_yes=None if pd.isna(row["p_yes"]) else float(row["p_yes"]),
            truth=None if pd.isna(row["truth"]) else int(row["truth"]),
            extra=json.loads(row["extra"]),
        )
        for row in frame.to_dict("records")
    ]
