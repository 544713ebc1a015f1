"""Rows of texts in memory: the same as on disk, and a fraction of what Python objects take."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.text_rows import TextRows, read_rows, write_rows


@dataclass(frozen=True)
class Line:
    name: str
    text: str


LINES = st.lists(st.builds(Line, st.text(max_size=5), st.text(max_size=20)), max_size=8)


@given(LINES, st.integers(-9, 9), st.integers(-9, 9))
@settings(max_examples=40, deadline=None)
def test_rows_are_a_sequence_of_what_was_written(tmp_path_factory, lines, begin, end):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    assert write_rows(path, Line, iter(lines)) == len(lines)
    rows = TextRows(path, Line, "the test")
    assert list(read_rows(path, Line, "the test")) == list(rows) == lines
    assert [rows[i] for i in range(len(rows))] == lines and rows[begin:end] == lines[begin:end]


@pytest.mark.parametrize("texts", [[1, 2], ["a", None]])
def test_a_foreign_column_is_no_column_of_text(tmp_path, texts):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"name": pa.array(["a", "b"]), "text": pa.array(texts)}), path)
    for read in (lambda: list(read_rows(path, Line, "the test")), lambda: TextRows(path, Line, "the test")):
        with pytest.raises(UserError, match=r"lacks the columns of text .*text: .*\(the test\)"):
            read()


def test_many_rows_take_little_memory(tmp_path):
    """Four bytes a row and column, and each text once."""
    path, count = tmp_path / "rows.parquet", 60_000
    tracemalloc.start()
    try:
        write_rows(
            path, Line, (Line(f"image-{k // 10}", f"Is there a finding of kind {k % 97}?") for k in range(count))
        )
        assert tracemalloc.get_traced_memory()[1] < 20e6
        gc.collect()
        tracemalloc.reset_peak()
        before, arrow = tracemalloc.get_traced_memory()[0], pa.total_allocated_bytes()
        rows = TextRows(path, Line, "the test")
        assert sum(1 for _ in rows) == count and rows[count - 1].name == f"image-{count // 10 - 1}"
        assert tracemalloc.get_traced_memory()[1] - before < 20e6
        assert pa.total_allocated_bytes() - arrow < 20 * count
    finally:
        tracemalloc.stop()
