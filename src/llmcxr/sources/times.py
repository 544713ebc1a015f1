"""When studies were made: cells of dates, times and day numbers to one scale, and the order of a patient's studies.

Text never sorts: a cell that is no date of the column's format is no time, and is counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from llmcxr.foundation.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# 20181231, and a time of day whose leading zeros may be lost: MIMIC-CXR's 21800506 85330.64, DICOM's 20181231093000.5.
_COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:\.0*)?(?:(?:[ T](\d{1,6})|(\d{6}))(\.\d*)?)?")
_ISO = re.compile(r"\d{4}-\d\d-\d\d([ T].*)?")
_START = datetime(1, 1, 1, tzinfo=UTC)

StudyKey = tuple[str, str]  # patient and study


def number(cell: str) -> float | None:
    """A plain number (days since something, a follow-up's number); None for all else, "nan" and "inf" too."""
    value = float(cell) if _NUMBER.fullmatch(cell) else None
    return value if value is None or math.isfinite(value) else None


def date(cell: str) -> float | None:
    """Seconds of an ISO date or date and time, `20181231`, or `21800506 213014.531` (a time zone is obeyed; none is
    UTC)."""
    try:
        if found := _COMPACT.fullmatch(cell):
            year, month, day, spaced, joined, fraction = found.groups()
            clock = (spaced or joined or "").zfill(6)
            when = datetime(int(year), int(month), int(day), int(clock[:2]), int(clock[2:4]), int(clock[4:]))
            return _seconds(when) + float(f"0{fraction or ''}")
        return _seconds(datetime.fromisoformat(cell)) if _ISO.fullmatch(cell) else None
    except ValueError:
        return None


def _seconds(when: datetime) -> float:
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _START).total_seconds()


def _by_pattern(pattern: str) -> Callable[[str], float | None]:
    def read(cell: str) -> float | None:
        try:
            return _seconds(datetime.strptime(cell, pattern))
        except ValueError:
            return None

    return read


def reader_of(cells: Iterable[str], pattern: str, where: str, setting: str) -> Callable[[str], float | None]:
    """How to read a column: by `pattern` (of strptime) where one is set, else all as dates or all as numbers, whichever
    reads more of the cells that are not empty.

    `UserError` where that is fewer than half: then the column has another format, which `setting` must state.
    """
    found = Counter(cell for cell in cells if cell)
    kinds = [_by_pattern(pattern)] if pattern else [date, number]
    read = [sum(count for cell, count in found.items() if kind(cell) is not None) for kind in kinds]
    best = max(range(len(kinds)), key=lambda k: read[k])
    if 2 * read[best] < found.total():
        strange = [cell for cell in found if kinds[best](cell) is None][:3]
        asked = f"of the format {pattern!r}" if pattern else "a number or a date like 2018-12-31 or 20181231"
        raise UserError(
            f"{where}: {found.total() - read[best]:,} of {found.total():,} cells are not {asked}, e.g. "
            f"{', '.join(map(repr, strange))}. Set {setting} to the format of the dates, e.g. %m/%d/%Y for 12/31/2018 "
            f"or %B %d, %Y for January 22, 2020."
        )
    return kinds[best]


def ranks(times: Mapping[StudyKey, float | None]) -> dict[StudyKey, int | None]:
    """The place of each study among the patient's in time, from 0; studies of one time share it.

    None for all studies of a patient of several of which one has no time: it might be the first. A patient's only study
    is the first whenever it was.
    """
    of_patient: defaultdict[str, list[StudyKey]] = defaultdict(list)
    for key in times:
        of_patient[key[0]].append(key)
    result: dict[StudyKey, int | None] = {}
    for keys in of_patient.values():
        known = sorted({time for key in keys if (time := times[key]) is not None})
        whole = len(keys) == 1 or all(times[key] is not None for key in keys)
        places = {time: place for place, time in enumerate(known)}
        for key in keys:
            result[key] = (0 if len(keys) == 1 else places[times[key]]) if whole else None  # type: ignore[index]
    return result
