"""Tables on disk to rows, and the cells in them: what is empty, what an id is, and what a label says."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import is_text
from llmcxr.studies.findings import is_finding, normal_form
from llmcxr.studies.report_cleaning import EMPTY_CELLS

Row = dict[str, Any]
_FLOAT_ID = re.compile(r"(\d+)\.0+")
_STATES = {"true": 1, "false": 0, "1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1}  # cells, as text


def text_of(value: Any) -> str:
    """A cell as stripped text; "" for an empty one. 10032.0 is 10032: whole numbers become floats where a column has
    gaps."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def cell(row: Mapping[str, Any], column: str) -> str:
    """A cell as text; "" for a column that is not set, also where the table has a column without a name (an index), and
    for what programs write into cells that are empty (nan, None, N/A). `UserError` for a list, a
    mapping or bytes (JSON, Parquet)."""
    value = row.get(column) if column else ""
    if isinstance(value, list | tuple | dict | bytes):
        raise UserError(
            f"column {column!r}: a cell holds {repr(value)[:80]}, which is neither text nor a number. Write it as text."
        )
    text = text_of(value)
    return "" if text.casefold() in EMPTY_CELLS else text


def id_of(row: Mapping[str, Any], column: str) -> str:
    """A cell that holds an id: 10000032.0 (saved anew by a spreadsheet or pandas) is 10000032."""
    text = cell(row, column)
    found = _FLOAT_ID.fullmatch(text)
    return found[1] if found else text


def state_of(value: Any, where: str) -> int | None:
    """The label of a cell: 1 (true) present, 0 (false) absent, -1 uncertain; None for an empty one: unknown, never
    absent.

    So it is in published label files (CheXpert's, those of MIMIC-CXR-JPG), as numbers or text. `UserError` for all
    else, with `where` it stands.
    """
    text = text_of(value).casefold()
    if text in EMPTY_CELLS:
        return None
    if text not in _STATES:
        raise UserError(
            f"{where}: the label {text_of(value)!r} is not 1, 0, -1 or empty. Correct the cell or the column's name."
        )
    return _STATES[text]


def labels_of(states: Mapping[str, int | None]) -> dict[str, int]:
    """What a row of labels says of each finding; a finding without an entry is unknown.

    A 1 under "No Finding" makes what is empty absent, but for support devices, of which CheXpert's rule says nothing.
    """
    labels = {name: state for name, state in states.items() if state is not None and is_finding(name)}
    if any(state == 1 and not is_finding(name) for name, state in states.items()):
        named = (name for name in states if is_finding(name))
        labels = {name: 0 for name in named if not normal_form(name).startswith("support device")} | labels
    return labels


def near(name: str, known: Sequence[str]) -> str:
    """For error messages: the known names that are like this one, else all."""
    lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), 3, 0.5)
    return f"nearest: {', '.join(lower[c] for c in close)}" if close else f"there are: {', '.join(map(str, known))}"


def _csv_rows(stream: Iterator[str], path: Path, delimiter: str, columns: Sequence[str] | None) -> Iterator[Row]:
    # Not pandas: it turns surplus cells into an index or drops them with a warning.
    reader = csv.reader(stream, delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(f"{path} has two columns {repeated[0]!r}. Rename one of them.")
    kept = [(i, name) for i, name in enumerate(names) if name and (columns is None or name in columns)]
    for values in reader:
        if any(values[len(names) :]):
            raise UserError(
                f"{path}, line {reader.line_num}: more cells than the {len(names)} columns. "
                f"Put text that holds the separator in double quotes."
            )
        if values:  # short cells repeat: one object for all of them
            yield {n: sys.intern(v) if len(v) < 24 else v for i, n in kept if i < len(values) and (v := values[i])}


def _jsonl_rows(stream: Iterator[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}). Correct the line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: should be a JSON object, {{...}}. Correct the line.")
        if "\\u" in line and not is_text(json.dumps(row, ensure_ascii=False)):
            raise UserError(f"{path}, line {number}: \\ud800 to \\udfff stand for half a character. Correct the line.")
        yield row


def columns_of(path: Path) -> list[str] | None:
    """Names in the head of a .csv or .tsv file (plain or .gz); None for other files, whose rows name their own."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in (".csv", ".tsv"):
        return None
    with _reading(path, suffixes[-1]), _opened(path) as stream:
        return [n.strip() for n in next(csv.reader(stream, delimiter="\t" if suffixes[-1] == ".tsv" else ","), [])]


@contextmanager
def _reading(path: Path, suffix: str) -> Iterator[None]:
    """`UserError` for a table that is damaged, or something else than its name says."""
    try:
        yield
    except csv.Error as error:
        raise UserError(
            f"{path} cannot be read as {suffix[1:]} ({error}). Check that every double quote is closed: the "
            "rest of the table may stand in one cell."
        ) from error
    except (ValueError, OSError, EOFError, zlib.error) as error:  # Unicode and pyarrow errors are ValueErrors
        raise UserError(
            f"{path} cannot be read as {suffix[1:]} ({error}). Check that it is whole and in UTF-8."
        ) from error


def _opened(path: Path) -> io.TextIOBase:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[return-value]
    return open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Rows of a .csv, .tsv, .jsonl (each plain or .gz) or .parquet file; cells as they are (CSV: text, empty ones left
    out).

    `columns` leaves out all others of a CSV. `UserError` names file and line.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Set its path in the recipe's source (relative to where llmcxr is started)."
        )
    suffix = next((s.lower() for s in reversed(path.suffixes) if s.lower() != ".gz"), "")
    with _reading(path, suffix):
        if suffix in (".csv", ".tsv"):
            with _opened(path) as stream:
                return list(_csv_rows(iter(stream), path, "\t" if suffix == ".tsv" else ",", columns))
        if suffix in (".jsonl", ".ndjson", ".json"):
            with _opened(path) as stream:
                return list(_jsonl_rows(iter(stream), path))
        if suffix == ".parquet":
            from pyarrow import parquet  # slow to load, and not needed for reading settings

            # Not pandas: it makes floats of whole numbers where a column has gaps, and an index of a named column.
            return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]
    raise UserError(f"{path}: tables are read as .csv, .tsv, .jsonl or .parquet, not {suffix or 'without a suffix'}.")
