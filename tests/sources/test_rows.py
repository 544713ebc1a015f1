"""Tables of any content are read to the cells they hold, or refused by name; cells mean one thing each."""

from __future__ import annotations

import csv
import gzip
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from llmcxr.foundation.errors import UserError
from llmcxr.sources.rows import cell, columns_of, id_of, labels_of, read_rows, state_of

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=12)


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=6))
def test_what_is_written_is_read(table):
    """Quotes, line ends and separators in cells; empty cells have no entry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with open(path, "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["a", "b", ""], *table])
        rows = read_rows(path)
    wanted = [{name: value for name, value in zip("ab", row, strict=False) if value} for row in table]
    assert rows == wanted, "a column without a name is none"


@given(st.binary(max_size=60))
def test_anything_else_is_refused_by_name(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("t.csv", "t.jsonl", "t.csv.gz", "t.parquet"):
            path = Path(folder) / name
            path.write_bytes(content)
            try:
                assert isinstance(read_rows(path), list)
            except UserError as error:
                assert name in str(error)


def test_packed_tables_and_chosen_columns(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfa, b ,c\n1,2,3\n\n,,\n"))
    assert read_rows(tmp_path / "t.csv.gz", ["a", "b"]) == [{"a": "1", "b": "2"}, {}]
    assert columns_of(tmp_path / "t.csv.gz") == ["a", "b", "c"]
    (tmp_path / "cut.csv.gz").write_bytes((tmp_path / "t.csv.gz").read_bytes()[:-6])
    with pytest.raises(UserError, match="cut.csv.gz cannot be read"):
        read_rows(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize("by_pandas", [True, False], ids=["by pandas", "by others"])
def test_cells_of_parquet_are_as_they_were_written(by_pandas, tmp_path):
    """Whole numbers stay whole where a column has gaps, an index with a name is a column, and no kind of gap is a value."""
    ids = pd.array([2**53 + 1, None], dtype="Int64")
    times = pd.to_datetime(["2018-12-31 09:30", None])
    frame = pd.DataFrame({"id": ids, "n": [7, None], "when": times, "seen": pd.array([True, None], dtype="boolean")})
    frame.index = pd.Index(["a.png", "b.png"], name="file")
    table = pa.Table.from_pandas(frame)
    parquet.write_table(table if by_pandas else table.replace_schema_metadata(None), tmp_path / "t.parquet")
    full, gaps = read_rows(tmp_path / "t.parquet")
    assert {name: cell(full, name) for name in full} == {
        "id": "9007199254740993",
        "n": "7",
        "when": "2018-12-31 09:30:00",
        "seen": "True",
        "file": "a.png",
    }
    assert {name: cell(gaps, name) for name in gaps} == dict.fromkeys(full, "") | {"file": "b.png"}


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN", "None", "N/A", "null", None, float("nan"), "<NA>"])
def test_what_is_empty(value):
    assert cell({"a": value}, "a") == "" == id_of({"a": value}, "a") and state_of(value, "x") is None
    assert cell({"": "0"}, "") == "", "the index that pandas writes is no column"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("10000032.0", "10000032"),
        (10000032.0, "10000032"),
        (10000032, "10000032"),
        ("007", "007"),
        ("1.5", "1.5"),
        ("p.0", "p.0"),
    ],
)
def test_ids(value, name):
    assert id_of({"a": value}, "a") == name


def test_states():
    assert [state_of(v, "x") for v in ("1", " 1.0 ", 1, np.float32(1), "True", True)] == [1] * 6
    assert [state_of(v, "x") for v in ("0.0", 0.0, np.False_, "-1.0", -1, -1.0)] == [0, 0, 0, -1, -1, -1]
    for wrong in ("2", "0.5", "yes", "inf", "-2.0", "1,0"):
        with pytest.raises(UserError, match=f"row 3: the label '{wrong}' is not 1, 0, -1 or empty"):
            state_of(wrong, "row 3")
    assert labels_of({"No Finding": 1, "Mass": None, "Edema": -1, "Support Devices": None}) == {"Mass": 0, "Edema": -1}
    assert labels_of({"No Finding": 0, "Mass": None}) == {} == labels_of({"No Finding": -1})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": "x\\ud800"}', "half a character"),
        ('{"\\uDFFF": 1}', "half a character"),
        ('{"a": [["\\ud800"]]}', "half a character"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_lines_of_json_that_no_file_can_hold(line, reason, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": "\\ud83d\\ude00 \\u00e9"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"t\.jsonl, line 2: .*{reason}"):
        read_rows(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"a": "\\ud83d\\ude00 \\u00e9"}\n')
    assert read_rows(tmp_path / "t.jsonl") == [{"a": "\U0001f600 é"}]


@pytest.mark.parametrize("value", [["Clear."], {"findings": "Clear."}, b"Clear."])
def test_a_cell_that_is_no_text_is_not_read_as_its_spelling_in_python(value):
    with pytest.raises(UserError, match="column 'report': a cell holds .*Clear.*neither text nor a number"):
        cell({"report": value}, "report")


def test_a_quote_that_is_not_closed(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"1,2\n' + "1,2\n" * 40_000)
    with pytest.raises(UserError, match="every double quote is closed"):
        read_rows(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        gzip.compress(b"a,b\n" * 9, mtime=0)[:14],
        gzip.compress(b"\xff\xfea\n", mtime=0),
        b"\x1f\x8b\x08\0" + b"x" * 40,
    ],
)
def test_the_head_of_a_damaged_table(content, tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(content)
    for read in (columns_of, read_rows):
        with pytest.raises(UserError, match=r"t\.csv\.gz cannot be read as csv"):
            read(tmp_path / "t.csv.gz")
