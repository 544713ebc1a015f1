"""What the model answered, on disk: appended as it goes, one line of JSON a group of answers, and one table in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from llmcxr.foundation.artifacts import atomic_path, writing
from llmcxr.foundation.errors import UserError
from llmcxr.tasks.measurement import Prediction

COLUMNS = [f.name for f in fields(Prediction)]


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write `predictions` as parquet, one row each, atomically; `extra` is JSON text there."""
    rows = [{**vars(p), "extra": json.dumps(p.extra, ensure_ascii=False)} for p in predictions]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=COLUMNS).astype("string").to_parquet(temporary, index=False)


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote. `UserError` where the file is missing, broken or lacks a column."""
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Run the `evaluation` stage first.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not readable parquet ({error}). Delete it and run `llmcxr evaluate` again."
        ) from error
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise UserError(f"{path} lacks the columns {missing}. Delete it and run `llmcxr evaluate` again.")
    rows = frame[COLUMNS].to_dict("records")
    return [Prediction(**{str(k): v for k, v in (row | {"extra": json.loads(row["extra"])}).items()}) for row in rows]


class Journal:
    """Groups of predictions as they are made, in a file of each process: what was interrupted goes on after the last whole line.

    A line is {"group": key, "predictions": [...]}.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.path = folder, folder / f"{rank}.jsonl"

    def read(self) -> dict[str, list[Prediction]]:
        """Groups that any process has finished; a line that was cut short is none."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                row = json.loads(line)
                found[row["group"]] = [Prediction(**values) for values in row["predictions"]]
        return found

    def append(self, group: str, predictions: Sequence[Prediction]) -> None:
        """Add a group."""
        row = {"group": group, "predictions": [asdict(p) for p in predictions]}
        with writing(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
        with writing(self.path), open(self.path, "ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def mend(self) -> None:
        """Cut off this process's last line where it has no end."""
        if self.path.exists():
            whole = self.path.read_bytes().rfind(b"\n") + 1
            with open(self.path, "r+b") as file:
                file.truncate(whole)
