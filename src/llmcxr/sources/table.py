"""Your own data: a table (CSV, TSV, JSONL or Parquet) with one row an image, and the folder of the images."""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pandas as pd

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import setting, settings_to_dict
from llmcxr.studies.cohort import DEFAULT_FRACTIONS, assign_splits, check_splits
from llmcxr.studies.findings import LabelSet, is_finding, normal_form
from llmcxr.studies.report_cleaning import clean_text
from llmcxr.studies.reports import Report, read_report
from llmcxr.studies.study import SPLITS, Split, Study

_SPLIT_NAMES = {
    "training": "train",
    "val": "validate",
    "valid": "validate",
    "validation": "validate",
    "dev": "validate",
}


ROLES = {
    "image": "the file's name (its suffix may be missing)",
    "report": "the whole report, whose sections are found by their headings",
    "findings": "that section alone",
    "impression": "that section alone",
    "patient": "who it is; else each image is a patient of its own",
    "study": "which study; else each image is one",
    "view": "PA, AP, LATERAL, ...",
    "order": "what sorts a patient's studies in time: a number or an ISO date",
    "label": "the image's class, or several apart by commas or |; the other classes count as absent",
    "split": "train, validate, test (split_names); else, or where empty, patients are split by hash",
}
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".dcm")  # of images, where their names lack one


@dataclass(frozen=True)
class TableSettings:
    path: Path = setting(Path(), "the table: .csv, .tsv, .jsonl or .parquet, one row an image")
    images: Path | None = setting(None, "folder that image names are relative to; the table's folder where not set")
    columns: dict[str, str] = setting(
        {}, "what: its column. " + "; ".join(f"{k}: {about}" for k, about in ROLES.items())
    )
    label_columns: list[str] = setting([], "columns with labels: 1 present, 0 absent, -1 uncertain, empty unknown")
    report_from_label: dict[str, str] = setting(
        {}, "for data without reports: value of the column of labels -> one line"
    )
    split_names: dict[str, str] = setting(_SPLIT_NAMES, "value in the column of splits -> train, validate or test")

    def build(self, seed: int, access: str) -> TableSource:
        """The source that reads this table."""
        return TableSource(self, seed, access)

    def column(self, role: str) -> str:
        """The column of one of `ROLES`; "" where there is none."""
        return self.columns.get(role, "image" if role == "image" else "")

    def faults(self) -> list[str]:
        faults = [
            f"columns.{k}: no such part of a row; {_near(k, list(ROLES))}" for k in self.columns if k not in ROLES
        ]
        if self.path == Path():
            faults.append("path: is required (the table)")
        if not self.column("image"):
            faults.append("columns.image: is required")
        if self.column("report") and (self.column("findings") or self.column("impression")):
            faults.append("columns: give report, or findings and impression, not both")
        if self.report_from_label and not self.column("label"):
            faults.append("columns.label: report_from_label needs it")
        if len(LabelSet(self.label_columns)) < len(self.label_columns):
            faults.append("label_columns: two of them name one finding (case, spaces, _ and - do not count)")
        for name, split in self.split_names.items():
            if split not in SPLITS:
                faults.append(f"split_names.{name}: {split!r} is not a split ({', '.join(SPLITS)})")
        return faults


def _near(name: str, known: list[str]) -> str:
    lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(name.lower(), list(lower), 3, 0.5)
    return f"nearest: {', '.join(lower[c] for c in close)}" if close else f"there are: {', '.join(map(str, known))}"


def _text(value: Any) -> str:
    """A cell as stripped text; "" for an empty one. 10032.0 is 10032: ids become floats where a column has gaps."""
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _cell(row: Mapping[str, Any], column: str) -> str:
    """A cell as text; "" for a column that is not set, also where the table has a column without a name (an index)."""
    return _text(row.get(column)) if column else ""


def _read_csv(path: Path, delimiter: str) -> list[dict[str, Any]]:
    # Not pandas: it turns surplus cells into an index or drops them with a warning.
    rows = []
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        if repeated := [name for name, count in Counter(reader.fieldnames or []).items() if name and count > 1]:
            raise UserError(f"{path} has two columns {repeated[0]!r}. Rename one of them.")
        for row in reader:
            if any(row.pop(None, [])):  # type: ignore[call-overload]
                raise UserError(
                    f"{path}, line {reader.line_num}: more cells than the {len(reader.fieldnames or [])} columns. "
                    f"Put text that holds the separator in double quotes."
                )
            rows.append(row)
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with open(path, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error}). Correct the line.") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: should be a JSON object, {{...}}. Correct the line.")
            rows.append(row)
    return rows


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a .csv, .tsv, .jsonl or .parquet file, cells as they are (CSV: text). `UserError` names file and line."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Set source `path` to your table (relative to where llmcxr is started)."
        )
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, "\t" if suffix == ".tsv" else ",")
        if suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(path)
        if suffix == ".parquet":
            return cast("list[dict[str, Any]]", pd.read_parquet(path).to_dict("records"))
    except (ValueError, OSError, csv.Error) as error:  # Unicode and pyarrow errors are ValueErrors
        raise UserError(
            f"{path} cannot be read as {suffix[1:]} ({error}). Check that it is whole and in UTF-8."
        ) from error
    raise UserError(f"{path}: tables are read as .csv, .tsv, .jsonl or .parquet, not {suffix or 'without a suffix'}.")


def _label(value: Any, where: str) -> int | None:
    text = _text(value).lower()
    if text in ("", "nan", "na", "null", "none"):
        return None
    states = {"true": 1, "false": 0, "1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1}
    if text not in states:
        raise UserError(
            f"{where}: the label {_text(value)!r} is not 1, 0, -1 or empty. Correct the cell or the column's name."
        )
    return states[text]


def _orders(values: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], int]:
    """(patient, study) -> rank in time within the patient. Numbers sort as numbers, else all as text (ISO dates)."""
    try:
        keys: dict[tuple[str, str], Any] = {study: float(value) for study, value in values.items()}
    except ValueError:
        keys = dict(values)
    distinct: defaultdict[str, set[Any]] = defaultdict(set)
    for (patient, _), key in keys.items():
        distinct[patient].add(key)
    ranks = {patient: {key: rank for rank, key in enumerate(sorted(found))} for patient, found in distinct.items()}
    return {study: ranks[study[0]][key] for study, key in keys.items()}


def _image_ids(names: list[str]) -> list[str]:
    """File stems where they tell the images apart, else whole relative names with "-" for "/"."""
    stems = [PurePosixPath(name).stem for name in names]
    if len(set(stems)) == len(stems):
        return stems
    ids = [name.strip("/").replace("/", "-") for name in names]
    if len(set(ids)) < len(ids):
        name, _ = Counter(ids).most_common(1)[0]
        raise UserError(f"two images would get the id {name!r}. Rename one of the files.")
    return ids


@dataclass(frozen=True)
class _Classes:
    """How cells of the column of labels are read: the classes, and the report line of each cell or class that has one."""

    names: LabelSet
    lines: dict[str, str]  # by normal form

    def named(self, cell: str) -> list[str]:
        """The classes that a cell names."""
        return [self.names.spelling(name) for name in _parts(cell)]

    def report(self, cell: str) -> str:
        """The line of the whole cell, else those of its classes, one after the other."""
        own = [cell] if normal_form(cell) in self.lines else _parts(cell)
        return clean_text(" ".join(self.lines.get(normal_form(name), "") for name in own))


def _parts(cell: str) -> list[str]:
    """The labels in a cell, apart by commas or "|"."""
    return [part for text in re.split(r"[,|]", cell) if (part := text.strip())]


def _classes(rows: list[dict[str, Any]], settings: TableSettings) -> _Classes:
    """The classes of the column of labels: those of `report_from_label` where it is given, else those that occur."""
    column, lines = settings.column("label"), settings.report_from_label
    given = LabelSet(part for key in lines for part in _parts(key))
    found = Counter(part for row in rows for part in _parts(_cell(row, column)))
    names = LabelSet(sorted(found, key=lambda name: (normal_form(name), -found[name])))
    if given and (unknown := sorted(given.missing(found))):
        raise UserError(
            f"{settings.path}, column {column!r}: {unknown[0]!r} ({found[unknown[0]]} rows) has no line in "
            f"report_from_label; {_near(unknown[0], list(given))}. Add it there or correct the table."
        )
    if missing := [key for key in lines if names.missing(_parts(key))]:
        raise UserError(
            f"report_from_label: {missing[0]!r} does not occur in column {column!r}; {_near(missing[0], list(names))}."
        )
    return _Classes(given or names, {normal_form(key): line for key, line in lines.items()})


class TableSource:
    """The studies of a table."""

    about = "A table of the owner's own radiographs and reports. Say here where they are from and what their licence permits."
    simulated = False
    assumed_images = None
    assumed_words = (50, 20)  # a round guess

    def __init__(self, settings: TableSettings, seed: int, access: str = "") -> None:
        """`seed` splits patients where the table states no split; `access` is said where files are missing."""
        self.settings, self.seed, self.access = settings, seed, access.strip()
        self.path = settings.path.expanduser()
        images = self.path.parent if settings.images is None else settings.images.expanduser()
        self.images = Path(os.path.abspath(images))  # without "..", so that one file has one name
        self.left_out: Counter[str] = Counter()

    @property
    def on_disk(self) -> bool:
        """Whether the table is there."""
        return self.path.is_file()

    @property
    def assumed_reports(self) -> list[str]:
        """The lines made from labels."""
        return list(self.settings.report_from_label.values())

    @property
    def findings(self) -> list[str]:
        """Label columns and classes that the settings name."""
        classes = [part for key in self.settings.report_from_label for part in _parts(key)]
        return [name for name in LabelSet([*self.settings.label_columns, *classes]) if is_finding(name)]

    def check(self) -> None:
        """`UserError` where the table or the folder of the images is missing."""
        how = f"\n{self.access}" if self.access else ""
        if self.settings.images is not None and not self.images.is_dir():
            raise UserError(
                f"the folder of the images, {self.settings.images}, does not exist. Set source.table.images to where they are "
                f"(relative to where llmcxr is started).{how}"
            )
        if not self.path.is_file():
            raise UserError(
                f"the table {self.settings.path} does not exist. Set source.table.path to it (relative to where llmcxr is "
                f"started).{how}"
            )

    def fingerprint(self) -> Any:
        """Settings, seed and the table's content; changed images are not seen."""
        content = fingerprint(self.path) if self.path.is_file() else ""
        return ["table", settings_to_dict(self.settings) | {"path": str(self.path)}, self.seed, content]

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """Read the table to studies with absolute image paths; nothing is written to `folder` (the run's).

        Left out and counted: rows that name no image or one that is not there, repeated images, and, where the settings
        say where reports come from, rows without one. Without any such setting all rows are kept with an empty report.
        Raises `UserError` for a missing table, folder or column, an unknown split, label or class, a patient in two splits,
        and where no row is left.
        """
        settings, path = self.settings, self.settings.path
        self.left_out.clear()
        if not self.images.is_dir():
            raise UserError(
                f"the folder {self.images} does not exist. Set source `images` to the folder of your images."
            )
        rows = read_table(self.path)
        if not rows:
            raise UserError(f"{path} has no rows. Set source `path` to a table with one row an image.")
        self._check_columns(rows)
        classes = _classes(rows, settings)
        kept: list[tuple[str, Path, dict[str, Any], Report, str]] = []
        seen: set[Path] = set()
        for number, row in enumerate(rows, 2 if self.path.suffix.lower() in (".csv", ".tsv") else 1):
            name = _cell(row, settings.column("image")).replace("\\", "/")
            image = self._file(name)
            if not name:
                self.left_out["no image named"] += 1
            elif not image.is_file():
                self.left_out["image file missing"] += 1
            elif image in seen:
                self.left_out["image repeated"] += 1
            elif (report := self._report(row, classes)).problem and self._wants_report:
                self.left_out[f"report: {report.problem}"] += 1
            else:
                seen.add(image)
                kept.append((name, image, row, report, f"{path}, row {number}"))
        if not kept:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.left_out.most_common())
            raise UserError(
                f"no row of {path} can be used ({reasons}). "
                f"Image names are looked up in {self.images}; set source `images` if that is wrong."
            )
        studies: list[Study] = []
        times: dict[tuple[str, str], str] = {}
        for image_id, (_, image, row, report, where) in zip(_image_ids([k[0] for k in kept]), kept, strict=True):
            patient = _cell(row, settings.column("patient")) or image_id  # an empty cell says nothing of who it is
            study_id = _cell(row, settings.column("study")) or image_id
            times[patient, study_id] = min(
                _cell(row, settings.column("order")), times.get((patient, study_id), "\U0010ffff")
            )
            studies.append(
                Study(
                    image_id=image_id,
                    patient_id=patient,
                    study_id=study_id,
                    image_path=str(image),
                    split=self._split(row, where),
                    view=_cell(row, settings.column("view")).upper(),
                    findings_text=report.findings,
                    impression_text=report.impression,
                    labels=self._labels(row, classes, where),
                )
            )
        if settings.column("order"):
            if unknown := [f"{patient}/{study}" for (patient, study), time in times.items() if not time]:
                raise UserError(
                    f"{path}, column {settings.column('order')!r}: empty for {len(unknown)} studies, "
                    f"e.g. {unknown[0]}. Fill it in or leave `columns.order` out."
                )
            ranks = _orders(times)
            studies = [replace(study, order=ranks[study.patient_id, study.study_id]) for study in studies]
        studies = assign_splits(studies, self.seed, DEFAULT_FRACTIONS)
        check_splits(studies)
        return studies

    def _file(self, name: str) -> Path:
        """The image of that name, whose suffix may be missing."""
        tried = [self.images / (name + suffix) for suffix in _SUFFIXES]
        return next((path for path in tried if path.is_file()), tried[0])

    def _check_columns(self, rows: list[dict[str, Any]]) -> None:
        settings = self.settings
        columns = list(dict.fromkeys(str(name) for row in rows for name in row))
        named = {f"columns.{role}": name for role in ROLES if (name := settings.column(role))}
        named |= {f"label_columns[{i}]": name for i, name in enumerate(settings.label_columns)}
        if absent := [
            f"{key}: no column {name!r}, {_near(name, columns)}" for key, name in named.items() if name not in columns
        ]:
            raise UserError(f"{settings.path} lacks columns that the settings name:\n  - " + "\n  - ".join(absent))

    @property
    def _wants_report(self) -> bool:
        s = self.settings
        return bool(s.column("report") or s.column("findings") or s.column("impression") or s.report_from_label)

    def _report(self, row: Mapping[str, Any], classes: _Classes) -> Report:
        whole, findings, impression = (
            _cell(row, self.settings.column(role)) for role in ("report", "findings", "impression")
        )
        report = read_report(whole, findings, impression)
        if report.problem and (line := classes.report(_cell(row, self.settings.column("label")))):
            return Report(impression=line, structure="headings")
        return report

    def _split(self, row: Mapping[str, Any], where: str) -> Split:
        cell, names = _cell(row, self.settings.column("split")), self.settings.split_names
        split = names.get(cell, names.get(cell.lower(), cell.lower()))
        if split and split not in SPLITS:
            raise UserError(f"{where}: the split {cell!r} is not known. Add it to source `split_names`.")
        return cast(Split, split)

    def _labels(self, row: Mapping[str, Any], classes: _Classes, where: str) -> dict[str, int]:
        columns = self.settings.label_columns
        states = {column: _label(row.get(column), f"{where}, column {column!r}") for column in columns}
        labels = {name: state for name, state in states.items() if state is not None and is_finding(name)}
        if any(state == 1 and not is_finding(name) for name, state in states.items()):
            # A normal image: what has no label of its own is absent, but for devices, of which that says nothing (CheXpert).
            labels = {
                name: 0 for name in columns if is_finding(name) and not normal_form(name).startswith("support device")
            } | labels
        if present := LabelSet(classes.named(_cell(row, self.settings.column("label")))):
            labels |= {name: int(name in present) for name in classes.names if is_finding(name)}
        return labels
