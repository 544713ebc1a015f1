"""Dates are read by a format, never sorted as text; what is none is counted or an error; a patient's first is known or
not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.foundation.errors import UserError
from llmcxr.sources.times import date, number, ranks, reader_of


@pytest.mark.parametrize(
    "cells",  # each list in the order of time, which is not that of text
    [
        ["2018-12-31", "2019-01-15"],
        ["20181231", "20190115"],
        ["20181231.0", "20190115.0"],  # saved anew by pandas
        ["21800506 85330.64", "21800506 213014.531"],
        ["20180101093000.25", "20180101093000.5", "20180101 093001"],
        ["2018-12-31 09:00", "2018-12-31T10:00:00", "2018-12-31 10:00:00.5"],
        ["2018-12-31T10:00:00+02:00", "2018-12-31T09:00:00Z"],
        ["-26", "-1", "0", "9", "10", "1e2"],
    ],
)
def test_what_is_understood(cells):
    read = reader_of(cells, "", "t.csv", "s")
    times = [read(cell) for cell in cells]
    assert None not in times and times == sorted(times) and len(set(times)) == len(times)


@pytest.mark.parametrize(
    ("pattern", "cells"),
    [("%m/%d/%Y", ["01/15/2018", "12/31/2018", "01/15/2019"]), ("%B %d, %Y", ["January 22, 2020", "February 2, 2020"])],
)
def test_other_formats_by_a_setting(pattern, cells):
    read = reader_of(cells, pattern, "t.csv", "s")
    times = [read(cell) for cell in cells]
    assert None not in times and times == sorted(times)
    with pytest.raises(UserError, match=r"t.csv: \d of \d cells are not a number or a date like .*Set s to the format"):
        reader_of(cells, "", "t.csv", "s")
    with pytest.raises(UserError, match="are not of the format '%Y'"):
        reader_of(cells, "%Y", "t.csv", "s")


def test_a_few_cells_that_are_no_time_do_not_turn_the_column_to_text():
    read = reader_of(["9", "10", "3", "unknown", ""], "", "t.csv", "s")
    assert [read(cell) for cell in ("3", "9", "10", "unknown", "", "2018-01-01")] == [3, 9, 10, None, None, None]
    assert reader_of([], "", "t.csv", "s")("2018-01-01") is not None


@pytest.mark.parametrize(
    "cell", ["", "nan", "NaN", "inf", "-inf", "1_000", "0x1f", "12/31/2018", "20181331", "2018", "2018-02-30", "x"]
)
def test_what_is_none(cell):
    assert date(cell) is None
    assert number(cell) == (2018 if cell == "2018" else 20181331 if cell == "20181331" else None)


@given(st.text(max_size=30))
def test_nothing_is_refused_with_a_crash(cell):
    for read in (date, number):
        assert read(cell) is None or isinstance(read(cell), float)


@given(st.datetimes(), st.datetimes())
def test_dates_sort_as_they_follow(a, b):
    one, two = date(a.isoformat()), date(b.isoformat(" "))
    assert one is not None and two is not None and (one < two) == (a < b)


def test_places_within_a_patient():
    times = {("p", "a"): 10.0, ("p", "b"): 9.0, ("p", "c"): 9.0, ("q", "a"): None, ("r", "a"): 1.0, ("r", "b"): None}
    assert ranks(times) == {
        ("p", "a"): 1,
        ("p", "b"): 0,
        ("p", "c"): 0,  # of one time
        ("q", "a"): 0,  # the only one
        ("r", "a"): None,  # the other might be the first
        ("r", "b"): None,
    }
