"""Your own data: a table (CSV, TSV, JSONL or Parquet) with one row an image, and the folder of the images.

    file,patient,study,date,view,report                                                            (invented)
    p01/s1.dcm,p01,s1,2019-04-02,PA,"FINDINGS: Small left effusion. IMPRESSION: Small left pleural effusion."

Also for published tables whose columns the settings name: NIH ChestX-ray14 (`Finding Labels`: `Effusion|Mass`),
PadChest (`Labels`: `['cardiomegaly', 'pleural effusion']`), the COVID-19 image data collection (`finding`: `COVID-19,
ARDS`). An empty cell means that nothing is known: of a label unknown, never absent; of a split that the patient's hash
decides.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, setting, settings_to_dict
from llmcxr.sources.base import FilesByName, Tally, finish, read_text, study_text, study_view
from llmcxr.sources.rows import Row, cell, columns_of, id_of, labels_of, near, read_rows, state_of, text_of
from llmcxr.sources.times import StudyKey, reader_of
from llmcxr.studies.findings import LabelSet, is_finding, normal_form
from llmcxr.studies.report_cleaning import clean_text
from llmcxr.studies.study import SPLITS, Split, Study
from llmcxr.studies.views import is_radiography

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
    "view": "PA, AP, AP Supine, LATERAL, ...; docs/data.md lists what is understood",
    "modality": "CR, DX, X-ray, ...; rows of any other (CT, MR) are left out",
    "order": "when the study was made: a number, or a date (order_format); studies are put in order by it",
    "label": "the image's class, or several: A|B, A, B or ['A', 'B']; the other classes count as absent",
    "split": "train, validate, test (split_names); else, or where empty, patients are split by hash",
}


@dataclass(frozen=True)
class TableSettings(Settings):
    path: Path = setting(Path(), "the table: .csv, .tsv, .jsonl or .parquet, one row an image")
    images: Path | None = setting(
        None, "folder of the images (names are looked up in folders below it too); the table's folder where not set"
    )
    columns: dict[str, str] = setting(
        {}, "what: its column. " + "; ".join(f"{k}: {about}" for k, about in ROLES.items())
    )
    order_format: str = setting(
        "", "how dates in the column of order are written where not as ISO or 20181231, e.g. %m/%d/%Y (as for strptime)"
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
        faults = [f"columns.{k}: no such part of a row; {near(k, list(ROLES))}" for k in self.columns if k not in ROLES]
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


# Cells of labels that say that nothing is known, as in the COVID-19 image data collection; never a class, nor the absence of one.
_NOT_KNOWN = {"nan", "unknown", "todo", "tbd", "?", "unlabeled", "unlabelled", "not known"}


def _parts(text: str) -> list[str]:
    """The labels in a cell: apart by commas or "|", in the brackets and quotes of a printed list or without."""
    parts = re.findall(r"'([^']*)'|\"([^\"]*)\"", text) if re.fullmatch(r"\[.*\]", text, re.DOTALL) else []
    texts = ["".join(pair) for pair in parts] or re.split(r"[,|]", text.strip("[]"))
    return [part for text in texts if (part := " ".join(text.split())) and part.casefold() not in _NOT_KNOWN]


def _label_cell(row: Mapping[str, Any], column: str) -> str:
    """A cell of labels. "None" is a class (no finding); lists of Parquet and JSON become text."""
    value = row.get(column) if column else None
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        return "|".join(map(str, cast("Iterable[Any]", value)))
    text = text_of(value)
    return "" if text.casefold() in ("nan", "null", "na", "n/a", "<na>") else text


def _classes(rows: list[Row], settings: TableSettings) -> _Classes:
    """The classes of the column of labels: those of `report_from_label` where it is given, else those that occur."""
    column, lines = settings.column("label"), settings.report_from_label
    given = LabelSet(part for key in lines for part in _parts(key))
    found = Counter(part for row in rows for part in _parts(_label_cell(row, column)))
    names = LabelSet(sorted(found, key=lambda name: (normal_form(name), -found[name])))
    if given and (unknown := sorted(given.missing(found))):
        raise UserError(
            f"{settings.path}, column {column!r}: {unknown[0]!r} ({found[unknown[0]]} rows) has no line in "
            f"report_from_label; {near(unknown[0], list(given))}. Add it there or correct the table."
        )
    if missing := [key for key in lines if names.missing(_parts(key))]:
        raise UserError(
            f"report_from_label: {missing[0]!r} does not occur in column {column!r}; {near(missing[0], list(names))}."
        )
    return _Classes(given or names, {normal_form(key): line for key, line in lines.items()})


class TableSource:
    """The studies of a table."""

    about = "A table of the owner's own radiographs and reports. Say here where they are from and what their licence permits."
    simulated = False
    assumed_words = (50, 20)  # a round guess

    def __init__(self, settings: TableSettings, seed: int, access: str = "") -> None:
        """`seed` splits patients where the table states no split; `access` is said where files are missing."""
        self.settings, self.seed, self.access = settings, seed, access.strip()
        self.path = settings.path
        images = self.path.parent if settings.images is None else settings.images
        self.images = Path(os.path.abspath(images))  # without "..", so that one file has one name
        self.tally = Tally()

    @property
    def on_disk(self) -> bool:
        """Whether the table is there."""
        return self.path.is_file()

    @property
    def assumed_images(self) -> int | None:
        """Its rows, of which some may be left out; None where the table is not there."""
        return len(self._rows()) if self.on_disk else None

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

        Left out and counted: rows that name no image or one that is not there, repeated images, and rows of another
        modality than radiography. Images without a report are kept. Raises `UserError` for a missing table, folder or
        column, an unknown split, label, class or format of dates, a patient in two splits, and where no row is left.
        """
        settings, path = self.settings, self.settings.path
        self.tally.clear()
        if not self.images.is_dir():
            raise UserError(
                f"the folder {self.images} does not exist. Set source `images` to the folder of your images."
            )
        rows = self._rows()
        classes = _classes(rows, settings)
        used = self._usable(rows)
        ids = _image_ids([name for name, *_ in used])
        self._time_of = reader_of(
            (cell(row, settings.column("order")) for row in rows),
            settings.order_format,
            f"{path}, column {settings.column('order')!r}",
            "source.table.order_format",
        )
        times = self._times(rows, dict(zip((place for *_, place in used), ids, strict=True)))
        studies = []
        for image_id, (_, image, place) in zip(ids, used, strict=True):
            row, where = rows[place], self._where(place)
            patient, study = self._keys(row, image_id)
            if patient == image_id and settings.column("patient"):
                self.tally.note("image without a patient (counted as one of its own)", image_id)
            findings, impression = self._report(row, classes, image_id)
            studies.append(
                Study(
                    image_id=image_id,
                    patient_id=patient,
                    study_id=study,
                    image_path=str(image),
                    split=self._split(row, where),
                    view=study_view(self.tally, cell(row, view)) if (view := settings.column("view")) else "",
                    findings_text=findings,
                    impression_text=impression,
                    labels=self._labels(row, classes, where),
                )
            )
        nothing = (
            f"no row of {path} can be used. Image names are looked up in {self.images}; set source `images` if that is "
            f"wrong"
        )
        return finish(studies, times, self.seed, self.tally, nothing)

    def _usable(self, rows: list[Row]) -> list[tuple[str, Path, int]]:
        """(name, file, place among the rows) of the rows whose image is there, is a radiograph and comes for the first
        time."""
        settings, files, used = self.settings, FilesByName(self.images), dict[Path, tuple[str, Path, int]]()
        patient = settings.column("patient")
        for place, row in enumerate(rows):
            name = self._name(row)
            modality = cell(row, settings.column("modality"))
            if not name:
                self.tally.leave_out("no image named", self._where(place))
            elif modality and not is_radiography(modality):
                self.tally.leave_out(f"modality {modality}", name)
            elif (file := files.find(name)) is None:
                self.tally.leave_out("image file missing", name)
            elif (file := Path(os.path.normpath(file))) in used:
                other = id_of(rows[used[file][2]], patient) != id_of(row, patient)
                self.tally.leave_out("image repeated" + ", under another patient" * other, name)
            else:
                used[file] = name, file, place
        return list(used.values())

    def _where(self, place: int) -> str:
        return f"{self.settings.path}, row {place + (1 if self.path.suffix.lower() in ('.jsonl', '.parquet') else 2)}"

    def _name(self, row: Row) -> str:
        name = text_of(row.get(self.settings.column("image"))).replace("\\", "/")  # a file may be called None
        return "" if name.casefold() == "nan" else name

    def _keys(self, row: Row, otherwise: str) -> StudyKey:
        """Patient and study of a row. Where a cell is empty, the image is a patient, or a study, of its own."""
        study = id_of(row, self.settings.column("study"))
        return id_of(row, self.settings.column("patient")) or otherwise, study or otherwise

    def _times(self, rows: list[Row], ids: Mapping[int, str]) -> dict[StudyKey, float | None]:
        """When each radiograph's study was made, those whose image is missing too: of several images the first."""
        column = self.settings.column("order")
        times: dict[StudyKey, float | None] = {}
        for place, row in enumerate(rows):
            if place not in ids and not id_of(row, self.settings.column("patient")):
                continue
            modality = cell(row, self.settings.column("modality"))
            if modality and not is_radiography(modality):  # a CT before it makes no radiograph a follow-up
                continue
            key = self._keys(row, ids.get(place) or PurePosixPath(self._name(row)).stem or f"row {place}")
            text = cell(row, column)
            time = self._time_of(text)
            if text and time is None:
                self.tally.note("time of the study not readable", f"{self._where(place)}: {text}")
            known = times.get(key)
            times[key] = known if time is None else time if known is None else min(time, known)
        return times

    def _rows(self) -> list[Row]:
        """The table, only the columns that the settings name; `UserError` where it lacks one of them, or has no
        rows."""
        settings, path = self.settings, self.settings.path
        named = {f"columns.{role}": name for role in ROLES if (name := settings.column(role))}
        named |= {f"label_columns[{i}]": name for i, name in enumerate(settings.label_columns)}
        rows = read_rows(self.path, list(named.values()))
        columns = columns_of(self.path)
        if not rows:
            raise UserError(f"{path} has no rows. Set source `path` to a table with one row an image.")
        if columns is None:
            columns = list(dict.fromkeys(str(name) for row in rows for name in row))
        if absent := [
            f"{k}: no column {name!r}, {near(name, columns)}" for k, name in named.items() if name not in columns
        ]:
            raise UserError(f"{path} lacks columns that the settings name:\n  - " + "\n  - ".join(absent))
        return rows

    @property
    def _wants_report(self) -> bool:
        s = self.settings
        return bool(s.column("report") or s.column("findings") or s.column("impression") or s.report_from_label)

    def _report(self, row: Row, classes: _Classes, image: str) -> tuple[str, str]:
        settings = self.settings
        report, findings, impression = (cell(row, settings.column(n)) for n in ("report", "findings", "impression"))
        if not (report or findings or impression):
            impression = classes.report(_label_cell(row, settings.column("label")))
        if not self._wants_report:
            return "", ""
        return study_text(self.tally, image, read_text(report, findings, impression))

    def _split(self, row: Row, where: str) -> Split:
        text, names = cell(row, self.settings.column("split")), self.settings.split_names
        split = names.get(text, names.get(text.lower(), text.lower()))
        if split and split not in SPLITS:
            raise UserError(f"{where}: the split {text!r} is not known. Add it to source `split_names`.")
        return cast(Split, split)

    def _labels(self, row: Row, classes: _Classes, where: str) -> dict[str, int]:
        columns = self.settings.label_columns
        labels = labels_of({name: state_of(row.get(name), f"{where}, column {name!r}") for name in columns})
        told = _label_cell(row, self.settings.column("label"))
        if present := LabelSet(classes.named(told)):
            labels |= {name: int(name in present) for name in classes.names if is_finding(name)}
        elif told:
            self.tally.note("label that says nothing", f"{where}: {told}")
        return labels
