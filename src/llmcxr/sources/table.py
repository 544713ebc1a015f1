"""Your own data: a table (CSV, TSV, JSONL or Parquet) with one row an image, and the folder of the images."""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pandas as pd

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import setting
from llmcxr.studies.cohort import DEFAULT_FRACTIONS, assign_splits, check_splits, fraction_faults
from llmcxr.studies.report_sections import clean_text, parse_report
from llmcxr.studies.study import SPLITS, Collection, Split, Study

_SPLIT_NAMES = {
    "training": "train",
    "val": "validate",
    "valid": "validate",
    "validation": "validate",
    "dev": "validate",
}


@dataclass(frozen=True)
class TableSettings:
    path: Path = setting(Path(), "the table: .csv, .tsv, .jsonl or .parquet, one row an image")
    images: Path | None = setting(None, "folder that image names are relative to; the table's folder where not set")
    image_suffix: str = setting("", "added to each image name, e.g. .png where the table holds bare ids")
    image_column: str = setting("image", "column with the image's file name")
    report_column: str = setting("", "column with the whole report; its sections are found by their headings")
    findings_column: str = setting("", "column with the findings section")
    impression_column: str = setting("", "column with the impression section")
    report_from_label: dict[str, str] = setting(
        {}, "for data without reports: value of label_column -> one-line report"
    )
    patient_column: str = setting("", "column with the patient; without it each image is a patient of its own")
    study_column: str = setting("", "column with the study; without it each image is a study of its own")
    view_column: str = setting("", "column with the view (PA, AP, LATERAL, ...)")
    order_column: str = setting("", "column that sorts a patient's studies in time: a number or an ISO date")
    label_columns: list[str] = setting([], "columns with labels: 1 present, 0 absent, -1 uncertain, empty unknown")
    label_column: str = setting("", "one column whose value is the image's class; the other classes count as absent")
    label_values: list[str] = setting([], "the classes in label_column; those that occur where empty")
    split_column: str = setting("", "column with the split; without it (or where empty) patients are split by hash")
    split_names: dict[str, str] = setting(_SPLIT_NAMES, "value in split_column -> train, validate or test")
    fractions: dict[str, float] = setting(
        DEFAULT_FRACTIONS, "parts of the patients in each split, where none is stated"
    )
    seed: int = setting(0, "seed of the split by hash")

    def faults(self) -> list[str]:
        faults = fraction_faults(self.fractions)
        if self.path == Path():
            faults.append("path: is required (the table)")
        if not self.image_column:
            faults.append("image_column: is required")
        if self.report_column and (self.findings_column or self.impression_column):
            faults.append("report_column: give it or findings_column and impression_column, not both")
        if (self.report_from_label or self.label_values) and not self.label_column:
            faults.append("label_column: report_from_label and label_values need it")
        if self.label_values and (unknown := sorted(set(self.report_from_label) - set(self.label_values))):
            faults.append(f"report_from_label: {unknown} are not in label_values")
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


def _read_csv(path: Path, delimiter: str) -> list[dict[str, Any]]:
    # Not pandas: it turns surplus cells into an index or drops them with a warning.
    rows = []
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        if repeated := [name for name, count in Counter(reader.fieldnames or []).items() if count > 1]:
            raise UserError(f"{path} has two columns {repeated[0]!r}. Rename one of them.")
        for row in reader:
            if None in row:
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


def _report(row: Mapping[str, Any], settings: TableSettings) -> tuple[str, str]:
    findings = impression = ""
    if settings.report_column:
        sections = parse_report(_text(row.get(settings.report_column)))
        findings, impression = sections.findings, sections.impression
    if settings.findings_column:
        findings = clean_text(_text(row.get(settings.findings_column)))
    if settings.impression_column:
        impression = clean_text(_text(row.get(settings.impression_column)))
    if not findings and not impression and settings.report_from_label:
        impression = clean_text(settings.report_from_label.get(_text(row.get(settings.label_column)), ""))
    return findings, impression


def _classes(rows: list[dict[str, Any]], settings: TableSettings) -> list[str]:
    if not settings.label_column:
        return []
    found = Counter(_text(row.get(settings.label_column)) for row in rows)
    found.pop("", None)
    known = settings.label_values or sorted(found)
    if unknown := sorted(set(found) - set(known)):
        raise UserError(
            f"{settings.path}, column {settings.label_column!r}: {unknown[0]!r} ({found[unknown[0]]} rows) is not in "
            f"label_values; {_near(unknown[0], known)}. Add it there or correct the table."
        )
    if missing := sorted(set(settings.report_from_label) - set(known)):
        raise UserError(
            f"report_from_label: {missing[0]!r} does not occur in column {settings.label_column!r}; "
            f"{_near(missing[0], known)}."
        )
    return known


def collect(settings: TableSettings, folder: Path) -> Collection:
    """Read the table to studies with absolute image paths; nothing is written to `folder` (the run's).

    Dropped and counted: rows that name no image or one that is not there, repeated images, and, where the settings
    say where reports come from, rows without one. Without any such setting all rows are kept with an empty report.
    Raises `UserError` for a missing table, folder or column, an unknown split, label or class, a patient in two splits,
    and where no row is left.
    """
    images = settings.images if settings.images is not None else settings.path.parent
    images = Path(os.path.abspath(images.expanduser()))  # without "..", so that one file has one name
    if not images.is_dir():
        raise UserError(f"the folder {images} does not exist. Set source `images` to the folder of your images.")
    rows = read_table(settings.path.expanduser())
    if not rows:
        raise UserError(f"{settings.path} has no rows. Set source `path` to a table with one row an image.")
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    named = {f: getattr(settings, f) for f in vars(settings) if f.endswith("_column") and getattr(settings, f)}
    named |= {f"label_columns[{i}]": name for i, name in enumerate(settings.label_columns)}
    if absent := [
        f"{key}: no column {name!r}, {_near(name, columns)}" for key, name in named.items() if name not in columns
    ]:
        raise UserError(f"{settings.path} lacks columns that the settings name:\n  - " + "\n  - ".join(absent))
    classes = _classes(rows, settings)
    wants_report = bool(
        settings.report_column or settings.findings_column or settings.impression_column or settings.report_from_label
    )

    dropped: Counter[str] = Counter()
    kept: list[tuple[str, Path, dict[str, Any], int]] = []
    seen: set[Path] = set()
    for number, row in enumerate(rows, 2 if settings.path.suffix.lower() in (".csv", ".tsv") else 1):
        name = _text(row.get(settings.image_column)).replace("\\", "/")
        path = images / (name + settings.image_suffix)
        if not name:
            dropped["no image named"] += 1
        elif not path.is_file():
            dropped["image file missing"] += 1
        elif path in seen:
            dropped["image repeated"] += 1
        elif wants_report and not any(_report(row, settings)):
            dropped["empty report"] += 1
        else:
            seen.add(path)
            kept.append((name, path, row, number))
    if not kept:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common())
        raise UserError(
            f"no row of {settings.path} can be used ({reasons}). "
            f"Image names are looked up in {images}; set source `images` or `image_suffix` if that is wrong."
        )

    studies: list[Study] = []
    times: dict[tuple[str, str], str] = {}
    for image_id, (_, path, row, number) in zip(_image_ids([k[0] for k in kept]), kept, strict=True):
        where = f"{settings.path}, row {number}"
        patient = _text(row.get(settings.patient_column)) or image_id  # an empty cell says nothing of who it is
        study_id = _text(row.get(settings.study_column)) or image_id
        split = _text(row.get(settings.split_column))
        split = settings.split_names.get(split, settings.split_names.get(split.lower(), split.lower()))
        if split and split not in SPLITS:
            raise UserError(
                f"{where}: the split {_text(row.get(settings.split_column))!r} is not known. "
                f"Add it to source `split_names`."
            )
        labels = {}
        for column in settings.label_columns:
            if (state := _label(row.get(column), f"{where}, column {column!r}")) is not None:
                labels[column] = state
        if value := _text(row.get(settings.label_column)):
            labels |= {name: int(name == value) for name in classes}
        times[patient, study_id] = min(
            _text(row.get(settings.order_column)), times.get((patient, study_id), "\U0010ffff")
        )
        findings, impression = _report(row, settings)
        studies.append(
            Study(
                image_id=image_id,
                patient_id=patient,
                study_id=study_id,
                image_path=str(path),
                split=cast(Split, split),
                view=_text(row.get(settings.view_column)).upper(),
                findings_text=findings,
                impression_text=impression,
                labels=labels,
            )
        )
    if settings.order_column:
        if unknown := [f"{patient}/{study}" for (patient, study), time in times.items() if not time]:
            raise UserError(
                f"{settings.path}, column {settings.order_column!r}: empty for {len(unknown)} studies, "
                f"e.g. {unknown[0]}. Fill it in or leave `order_column` out."
            )
        ranks = _orders(times)
        studies = [Study(**{**vars(study), "order": ranks[study.patient_id, study.study_id]}) for study in studies]
    studies = assign_splits(studies, settings.seed, settings.fractions)
    check_splits(studies)
    return Collection(studies, dropped)
