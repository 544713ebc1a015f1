"""A folder of DICOM files, as a hospital's archive exports it: studies, views and times come from the files' own tags.

- Which files: all that DICOM can read, whatever their names and folders. Radiographs alone are used (modality CR, DX,
  DR or RG); CT, SEG, dose reports and the like are left out and counted by modality, as are raw detector images (FOR
  PROCESSING) that go with processed ones.
- Patients are told apart by PatientID, studies by StudyInstanceUID, and put in order by StudyDate and StudyTime. Where
  an archive has removed the PatientID, a study counts as a patient of its own.
- The view is ViewPosition, else what ViewCodeSequence says, else SeriesDescription where it names one view.
- Reports come from a table with one row a study (or image), or there are none. Its column `study` holds the
  StudyInstanceUID, the AccessionNumber, the SOPInstanceUID, or the file's name. A blank label is unknown.
- Access and terms are the owner's. Nothing is anonymised here: ids and texts are kept as they are.

Invented:

    export/A1/00000001, export/A1/00000002.dcm, ...
    reports.csv        accession,report
                       4711,"FINDINGS: Small left effusion. IMPRESSION: Small left pleural effusion."

    source:
      kind: dicom_folder
      dicom_folder: {folder: export, reports: reports.csv, columns: {study: accession, report: report}}
"""

from __future__ import annotations

import functools
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, setting, settings_to_dict
from llmcxr.foundation.texts import is_text
from llmcxr.foundation.workers import in_processes
from llmcxr.sources.base import Tally, files_below, finish, read_text, study_text, study_view
from llmcxr.sources.rows import Row, cell, columns_of, id_of, labels_of, near, read_rows, state_of
from llmcxr.sources.times import StudyKey, date
from llmcxr.studies.findings import LabelSet, is_finding
from llmcxr.studies.study import SPLITS, Split, Study
from llmcxr.studies.views import is_radiography, view_in

_TAGS = (
    "PatientID", "StudyInstanceUID", "SOPInstanceUID", "AccessionNumber", "StudyDate", "StudyTime", "Modality", "ViewPosition",
    "ViewCodeSequence", "SeriesDescription", "PresentationIntentType", "BodyPartExamined", "Rows",
)  # fmt: skip
_ROLES = {
    "study": "StudyInstanceUID, AccessionNumber, SOPInstanceUID or the file's name",
    "report": "the whole report, whose sections are found by their headings",
    "findings": "that section alone",
    "impression": "that section alone",
    "split": "train, validate, test; where empty, patients are split by hash",
}
Header = dict[str, str]


@dataclass(frozen=True)
class DicomFolderSettings(Settings):
    folder: Path = setting(Path(), "the folder; DICOM files are found in it at any depth")
    reports: Path | None = setting(
        None, "table of reports or labels (.csv, .tsv, .jsonl, .parquet); none where not set"
    )
    columns: dict[str, str] = setting(
        {}, "what: its column in `reports`. " + "; ".join(f"{k}: {about}" for k, about in _ROLES.items())
    )
    label_columns: list[str] = setting(
        [], "columns with labels in `reports`: 1 present, 0 absent, -1 uncertain, empty unknown"
    )

    def build(self, seed: int, access: str) -> DicomFolderSource:
        """The source that reads this folder."""
        return DicomFolderSource(self, seed, access)

    def faults(self) -> list[str]:
        faults = [
            f"columns.{k}: no such part of a row; {near(k, list(_ROLES))}" for k in self.columns if k not in _ROLES
        ]
        if self.folder == Path():
            faults.append("folder: is required")
        if self.reports is not None and not self.columns.get("study"):
            faults.append("columns.study: is required where there are reports (which column says whose they are)")
        if self.reports is None and (self.columns or self.label_columns):
            faults.append("reports: is required where columns are named (the table)")
        return faults


def read_header(path: Path) -> Header | str:
    """Tags of a file as text, without its pixels; a sentence about why there are none."""
    import pydicom  # slow to load, and not needed for reading settings
    from pydicom.errors import InvalidDicomError

    if not is_text(str(path)):
        return "file or folder whose name is not UTF-8"
    if not os.path.isfile(path):  # a pipe or a device, of which reading may never end
        return "not a file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some archives strip the preamble: a file with the suffix is read all the same.
            data = pydicom.dcmread(
                path,
                stop_before_pixels=True,
                force=path.suffix.lower() in (".dcm", ".dicom"),
                specific_tags=[*_TAGS],
            )
            if not data.get("SOPInstanceUID") and not data.get("Modality"):
                return "not a DICOM file"
            found = {tag: str(data.get(tag) or "").strip() for tag in _TAGS if tag != "ViewCodeSequence"}
            codes = data.get("ViewCodeSequence") or [{}]
            return found | {"ViewCode": str(codes[0].get("CodeMeaning") or "")}
    except InvalidDicomError:
        return "not a DICOM file"
    except Exception as error:  # a damaged header makes pydicom raise almost anything
        return f"DICOM header cannot be read ({type(error).__name__})"


class DicomFolderSource:
    """The studies of a folder of DICOM files."""

    about = "DICOM files and reports of the owner's own. Say here where they are from and what their owner permits."
    simulated = False
    assumed_images = None
    assumed_words = (50, 20)
    assumed_reports = ()

    def __init__(self, settings: DicomFolderSettings, seed: int, access: str = "") -> None:
        self.settings, self.seed, self.access = settings, seed, access.strip()
        self.folder = Path(os.path.abspath(settings.folder))
        self.reports = settings.reports
        self.tally = Tally()

    @property
    def on_disk(self) -> bool:
        """Whether the folder is there."""
        return self.folder.is_dir()

    @property
    def findings(self) -> list[str]:
        """The label columns."""
        return [name for name in LabelSet(self.settings.label_columns) if is_finding(name)]

    def check(self) -> None:
        """`UserError` where the folder or the table of reports is missing."""
        how = f"\n{self.access}" if self.access else ""
        if not self.folder.is_dir():
            raise UserError(
                f"the folder {self.settings.folder} does not exist. Set source.dicom_folder.folder to it (relative to "
                f"where llmcxr is started).{how}"
            )
        if self.reports is not None and not self.reports.is_file():
            raise UserError(
                f"the table {self.settings.reports} does not exist. Set source.dicom_folder.reports to it.{how}"
            )

    def fingerprint(self) -> Any:
        """Settings, seed and the content of the table; of the DICOM files their names alone."""
        content = fingerprint(self.reports) if self.reports is not None and self.reports.is_file() else ""
        names = fingerprint([str(p.relative_to(self.folder)) for p in self._files()]) if self.on_disk else ""
        return ["dicom_folder", settings_to_dict(self.settings), self.seed, content, names]

    def _files(self) -> list[Path]:
        return list(files_below(self.folder, lambda name: name[0] != "." and name != "DICOMDIR"))

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """Read all headers to studies; what is no radiograph, or comes twice, is left out and counted.

        Raises `UserError` for a table that lacks a column or of which no row is of a file, and where there is no
        radiograph.
        """
        self.check()
        self.tally.clear()
        files = self._files()
        rows = self._rows()
        found = self._radiographs(
            dict(zip(files, in_processes(read_header, files, "DICOM headers", "file"), strict=True))
        )
        used = dict[str, list[str]]()
        studies, times = [], dict[StudyKey, float | None]()
        for path, header in found.items():
            study = header["StudyInstanceUID"] or header["AccessionNumber"] or str(path.parent.relative_to(self.folder))
            patient = header["PatientID"]
            if not patient:
                self.tally.note("image without a PatientID (its study counts as a patient)", path.name)
            key = (patient or study, study)
            time = _time(header)
            if time is None and (header["StudyDate"] or header["StudyTime"]):
                self.tally.note(
                    "time of the study not readable", f"{path.name}: {header['StudyDate']} {header['StudyTime']}"
                )
            known = times.get(key)
            times[key] = known if time is None else time if known is None else min(time, known)
            name = path.relative_to(self.folder).as_posix()
            row, by = self._row_of(rows, header, name)
            used.setdefault(by, []).append(name)
            studies.append(
                Study(
                    image_id=header["SOPInstanceUID"] or name.replace("/", "-"),
                    patient_id=key[0],
                    study_id=study,
                    image_path=str(path),
                    split=self._split(row, name),
                    view=study_view(
                        self.tally, header["ViewPosition"], header["ViewCode"], view_in(header["SeriesDescription"])
                    ),
                    **self._said(row, name),
                )
            )
        if rows and studies and set(used) == {""}:
            first = next(iter(found.values()))
            raise UserError(
                f"no row of {self.reports} is of a file in {self.folder}: column {self.settings.columns['study']!r} "
                f"holds e.g. {next(iter(rows))!r}, a file has StudyInstanceUID {first['StudyInstanceUID']!r}, "
                f"AccessionNumber {first['AccessionNumber']!r}, SOPInstanceUID {first['SOPInstanceUID']!r}. Set "
                f"columns.study to the column that holds one of them, or the files' names."
            )
        if rows and (without := len(used.get("", []))):
            self.tally.noted["image without a row in the table of reports"] += without
        nothing = f"no radiograph is in {self.folder}"
        return finish(studies, times, self.seed, self.tally, nothing)

    def _radiographs(self, headers: Mapping[Path, Header | str]) -> dict[Path, Header]:
        found: dict[Path, Header] = {}
        seen: set[str] = set()
        processed: defaultdict[str, bool] = defaultdict(bool)  # study -> whether it has images for presentation
        for header in headers.values():
            if isinstance(header, dict):
                processed[header["StudyInstanceUID"]] |= header["PresentationIntentType"] != "FOR PROCESSING"
        for path, header in headers.items():
            if isinstance(header, str):
                self.tally.leave_out(header, path.name)
            elif header["Modality"] and not is_radiography(header["Modality"]):
                self.tally.leave_out(f"modality {header['Modality']}", path.name)
            elif not header["Rows"]:
                self.tally.leave_out("DICOM object without an image", path.name)
            elif header["PresentationIntentType"] == "FOR PROCESSING" and processed[header["StudyInstanceUID"]]:
                self.tally.leave_out(
                    "raw detector image (FOR PROCESSING) of a study that has processed ones", path.name
                )
            elif header["SOPInstanceUID"] and header["SOPInstanceUID"] in seen:
                self.tally.leave_out("image repeated (its SOPInstanceUID came before)", path.name)
            else:
                seen.add(header["SOPInstanceUID"])
                found[path] = header
                part = header["BodyPartExamined"].upper()
                if not header["Modality"]:
                    self.tally.note("image without a modality (taken for a radiograph)", path.name)
                if part and not any(word in part for word in ("CHEST", "THORAX", "LUNG", "RIB")):
                    self.tally.note(f"image of another part of the body by its tag: {part}", path.name)
        return found

    def _rows(self) -> dict[str, Row]:
        """Rows of the table of reports by what stands in its column `study`."""
        if self.reports is None:
            return {}
        settings = self.settings
        named = [*settings.columns.values(), *settings.label_columns]
        table, columns = read_rows(self.reports, named), columns_of(self.reports)
        if columns is None:
            columns = list(dict.fromkeys(str(name) for row in table for name in row))
        if absent := [name for name in named if name not in columns]:
            raise UserError(f"{self.reports} has no column {absent[0]!r}, {near(absent[0], columns)}.")
        rows: dict[str, Row] = {}
        for row in table:
            key = id_of(row, settings.columns["study"])
            if not key:
                self.tally.note("row of the table of reports that says not whose it is")
            elif key in rows:
                self.tally.note("further row of the same study in the table of reports (not read)", key)
            else:
                rows[key] = row
        return rows

    @staticmethod
    def _row_of(rows: Mapping[str, Row], header: Header, name: str) -> tuple[Row, str]:
        """The row of an image, and what it was found by ("" where there is none)."""
        tags = {tag: header[tag] for tag in ("SOPInstanceUID", "StudyInstanceUID", "AccessionNumber")}
        file = PurePosixPath(name)
        for by, key in (tags | {"name": name, "file": file.name, "stem": file.stem}).items():
            if key and key in rows:
                return rows[key], by
        return {}, ""

    def _said(self, row: Row, name: str) -> dict[str, Any]:
        """Texts and labels of a row."""
        columns, labels = self.settings.columns, self.settings.label_columns
        texts = {role: cell(row, columns.get(role, "")) for role in ("report", "findings", "impression")}
        wanted = any(role in columns for role in texts)
        findings, impression = study_text(self.tally, name, read_text(**texts)) if wanted else ("", "")
        states = {label: state_of(row.get(label), f"{self.reports}, column {label!r}") for label in labels}
        return {"findings_text": findings, "impression_text": impression, "labels": labels_of(states)}

    def _split(self, row: Row, name: str) -> Split:
        split = cell(row, self.settings.columns.get("split", "")).lower()
        split = {"val": "validate", "valid": "validate", "validation": "validate", "training": "train"}.get(
            split, split
        )
        if split and split not in SPLITS:
            raise UserError(f"{self.reports}, of {name}: the split {split!r} is not one of {', '.join(SPLITS)}.")
        return cast(Split, split)


@functools.lru_cache(4096)
def _clock(day: str, time: str) -> float | None:
    whole, _, fraction = time.replace(":", "").partition(".")
    return date(f"{day.replace('.', '')} {whole.ljust(6, '0')}.{fraction}" if whole else day)


def _time(header: Header) -> float | None:
    """When the study was made: DICOM may leave out seconds and minutes (`0930`)."""
    return _clock(header["StudyDate"], header["StudyTime"])
