"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 with MIMIC-CXR's reports, or MIMIC-CXR's DICOM files, as published.

- Hospital: Beth Israel Deaconess Medical Center, Boston, Massachusetts; emergency department and wards, 2011 to 2016.
- 377,110 radiographs in 227,827 studies of 65,379 patients; 227,835 reports. Dates are shifted by patient, so that
  intervals are true and years are not.
- Access: credentialed PhysioNet users who have passed the CITI training and signed the data use agreement. Neither
  files nor what is derived from them (pixels, models) may be passed on to others, or sent to services that keep what
  they are sent.
- Citation: Johnson et al., Scientific Data 2019 (MIMIC-CXR); Johnson et al., 2019, arXiv 1901.07042 (MIMIC-CXR-JPG).
- A blank label: the report does not mention the finding, so it is unknown. -1: the report is in doubt.

As published (invented ids):

    mimic-cxr-2.0.0-split.csv.gz       dicom_id,study_id,subject_id,split
    mimic-cxr-2.0.0-metadata.csv.gz    dicom_id,subject_id,study_id,...,ViewPosition,Rows,Columns,StudyDate,StudyTime,...
    mimic-cxr-2.0.0-chexpert.csv.gz    subject_id,study_id,Atelectasis,...,Support Devices       (or -negbio)
    files/p10/p10000001/s50000001/0a1b2c3d-....jpg
    mimic-cxr-reports.zip              files/p10/p10000001/s50000001.txt

Tables may be .csv or .csv.gz, and lie with the images or apart. Reports are read from the zip file, with or without a
folder around `files`, or from where it was unpacked, at any depth. `files/` of MIMIC-CXR itself (.dcm) takes the place
of the JPEG files. Parts of a tree are read as far as they go, and what is missing is counted.
Not read: mimic-cxr-2.1.0-test-set-labeled.csv (687 reports labelled by a radiologist).
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from tqdm import tqdm

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, setting, settings_to_dict
from llmcxr.foundation.workers import in_processes
from llmcxr.sources.base import Tally, files_below, finish, folders_below, read_text, study_text, study_view
from llmcxr.sources.chexpert import OBSERVATIONS, OBSERVED
from llmcxr.sources.rows import Row, cell, columns_of, id_of, labels_of, read_rows, state_of
from llmcxr.sources.times import StudyKey, date
from llmcxr.studies.reports import MOST
from llmcxr.studies.study import SPLITS, Split, Study

ACCESS = (
    "MIMIC-CXR-JPG (images, labels) and MIMIC-CXR (reports) are given to credentialed PhysioNet users who have passed "
    "the CITI training and signed the data use agreement: physionet.org/content/mimic-cxr-jpg and "
    "physionet.org/content/mimic-cxr."
)
_SUFFIXES = (".jpg", ".dcm", ".png", ".jpeg")
_REPORT = re.compile(r"(?:^|/)s(\d{8})\.txt$")
_REPORT_FORM = "s########.txt (as files/p10/p10000001/s50000001.txt)"
_NEEDED = {
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "metadata": ("dicom_id", "study_id", "subject_id", "ViewPosition", "StudyDate", "StudyTime"),
    "chexpert": ("study_id", "subject_id", *OBSERVATIONS),
    "negbio": ("study_id", "subject_id", *OBSERVATIONS),
}
_MORE = {"metadata": ("ViewCodeSequence_CodeMeaning",)}  # said of some images whose ViewPosition is blank
_IMAGE_KEY = tuple[str, str, str]  # patient, study, image


@dataclass(frozen=True)
class MimicCxrSettings(Settings):
    folder: Path = setting(
        Path(), "the folder of MIMIC-CXR-JPG, or of MIMIC-CXR's DICOM files: the one that holds files/"
    )
    reports: Path | None = setting(
        None,
        "mimic-cxr-reports.zip, or a folder that holds the reports; where not set, looked for in and beside `folder`",
    )
    tables: Path | None = setting(None, "folder of the split, metadata and label files where they are not in `folder`")
    labels: Literal["chexpert", "negbio", "none"] = setting(
        "chexpert", "which of the published labels are read; none: reports are labelled here"
    )

    def build(self, seed: int, access: str) -> MimicCxrSource:
        """The source that reads this folder."""
        return MimicCxrSource(self, seed, access)

    def faults(self) -> list[str]:
        return ["folder: is required (of MIMIC-CXR-JPG)"] if self.folder == Path() else []


class Reports:
    """The text of a study's report by its number, out of a zip file or a folder."""

    def __init__(self, path: Path) -> None:
        """Look for the reports. `UserError` where `path` is not there, broken, or holds none."""
        self.path, self._archive = path, None
        if path.is_dir():
            # A study's own folder holds images; reports lie beside it.
            found = {p.name: str(p) for p in files_below(path, lambda n: _REPORT.search(n) is not None, r"s\d{8}|\..*")}
            self.places = {name[1:9]: place for name, place in found.items()}
        else:
            self._archive = self._open()
            names = self._archive.namelist()
            self.places = {match[1]: name for name in names if (match := _REPORT.search(name))}
        if not self.places:
            raise UserError(
                f"{path} holds no report: looked for files named {_REPORT_FORM}, at any depth. Set "
                f"source.mimic_cxr.reports to mimic-cxr-reports.zip, or to the folder in which it was unpacked."
            )

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise UserError(
                f"the reports {self.path} do not exist. Set source.mimic_cxr.reports to mimic-cxr-reports.zip, or to "
                f"the folder in "
                f"which it was unpacked.\n{ACCESS}"
            ) from error
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.path} is neither a folder nor a readable zip file ({error}). Download it again."
            ) from error

    def read(self, study: str) -> str | None:
        """The report's text (of a far too long one its beginning); None where there is none. `UserError` if damaged."""
        if (place := self.places.get(study)) is None:
            return None
        try:
            with open(place, "rb") if self._archive is None else self._archive.open(place) as stream:
                content = stream.read(4 * MOST + 1)  # bytes; a zip file of megabytes can hold one of gigabytes
        except (
            OSError,
            zipfile.BadZipFile,
            EOFError,
            ValueError,
            zlib.error,
            RuntimeError,
        ) as error:  # the last: encrypted
            raise UserError(f"{self.path}: {place} cannot be read ({error}). Download it again.") from error
        return content.decode("utf-8", errors="replace")


class MimicCxrSource:
    """The studies of MIMIC-CXR."""

    about = (
        "MIMIC-CXR (Johnson et al., 2019; Beth Israel Deaconess Medical Center), under PhysioNet's credentialed data "
        "use agreement. The model has learned from patients' reports and radiographs: it may not be passed on to those "
        "who have not signed it."
    )
    simulated = False
    assumed_images = 377_110
    assumed_words = (50, 30)
    assumed_reports = ()
    findings = OBSERVED

    def __init__(self, settings: MimicCxrSettings, seed: int, access: str = "") -> None:
        self.settings, self.seed, self.access = settings, seed, access.strip() or ACCESS
        self.folder = settings.folder
        self.tables = self.folder if settings.tables is None else settings.tables
        self.tally = Tally()

    @property
    def on_disk(self) -> bool:
        """Whether its folder is there."""
        return self.folder.is_dir()

    def check(self) -> None:
        """`UserError` where the folder, a table or the reports are missing."""
        for name, path in (("folder", self.folder), ("tables", self.tables)):
            if not path.is_dir():
                raise UserError(
                    f"the folder {path} does not exist. Set source.mimic_cxr.{name} to where it is (relative to where "
                    f"llmcxr is "
                    f"started).\n{self.access}"
                )
        for name in self._names():
            self._table(name)
        if (reports := self._reports_path()) is not None and not reports.exists():
            raise UserError(
                f"the reports {reports} do not exist. Set source.mimic_cxr.reports to mimic-cxr-reports.zip, or to the "
                f"folder in which it was "
                f"unpacked.\n{self.access}"
            )

    def fingerprint(self) -> Any:
        """Settings, seed, the contents of the tables and of the zip file of reports; of reports in a folder their names
        alone."""
        content: list[Any] = []
        if self.on_disk:
            content = [fingerprint(self._table(name)) for name in self._names()]
            reports = self._reports_path()
            if reports is not None and reports.is_file():
                content.append(fingerprint(reports))
            elif reports is not None and reports.is_dir():
                content.append(fingerprint(sorted(self._reports.places)))
        return ["mimic_cxr", settings_to_dict(self.settings), self.seed, content]

    def _names(self) -> list[str]:
        return ["split", "metadata", *([] if self.settings.labels == "none" else [self.settings.labels])]

    def _table(self, name: str) -> Path:
        for folder in folders_below(self.tables, 4):
            if found := sorted(p for p in folder.glob(f"mimic-cxr-2.*-{name}.csv*") if p.suffix in (".csv", ".gz")):
                return found[-1]
        raise UserError(
            f"{self.tables} holds no mimic-cxr-2.0.0-{name}.csv.gz (or .csv; looked four folders deep). Set "
            f"source.mimic_cxr.tables to the "
            f"folder of MIMIC-CXR-JPG's tables.\n{self.access}"
        )

    def _reports_path(self) -> Path | None:
        """The setting, else a zip file or a folder of that name in or beside the folder; else the folder itself, with
        DICOM files."""
        if self.settings.reports is not None:
            return self.settings.reports
        for folder in (self.folder, self.tables, self.folder.resolve().parent):
            for name in ("mimic-cxr-reports.zip", "mimic-cxr-reports"):
                if (folder / name).exists():
                    return folder / name
        base = self._base()
        patient = next((p for ten in sorted(base.glob("p1?")) for p in sorted(ten.iterdir()) if p.is_dir()), None)
        return base if patient is not None and any(patient.glob("s*.txt")) else None

    @cached_property
    def _reports(self) -> Reports:
        path = self._reports_path()
        if path is None:
            raise UserError(
                f"no reports were found in or beside {self.folder}: looked for mimic-cxr-reports.zip, a folder "
                f"mimic-cxr-reports, and "
                f"files named {_REPORT_FORM}. Set source.mimic_cxr.reports.\n{self.access}"
            )
        return Reports(path)

    def _base(self) -> Path:
        """The folder that holds p10, p11, ...: `files` of the release."""
        return next((f for f in folders_below(self.folder, 5) if any(f.glob("p1[0-9]"))), self.folder / "files")

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """Join tables, reports and images to studies; nothing is written to `folder`, and no image is opened.

        Left out and counted: images whose file is missing. Kept and counted: images without a row in the split file or
        the metadata, studies without a report or without labels. Raises `UserError` where no report or no label is of
        any study, and where no image is left.
        """
        self.check()
        self.tally.clear()
        images, splits, views, times = self._images()
        labels, reports, base = self._labels({key[:2] for key in images}), self._reports, self._base()
        if not any(study in reports.places for _, study, _ in images):
            raise UserError(
                f"{reports.path}: none of its {len(reports.places):,} reports is of a study in "
                f"{self._table('split').name}, e.g. s{next(iter(reports.places))}.txt. Set source.mimic_cxr.reports to "
                f"the reports of MIMIC-CXR."
            )
        texts = self._texts(list(dict.fromkeys(study for _, study, _ in images)))
        studies, study, present = [], "", _present(base)
        for patient, study_id, image in tqdm(images, desc="MIMIC-CXR", unit="image"):
            where = f"p{patient[:2]}/p{patient}/s{study_id}"
            if study_id != study:
                study = study_id
                if (patient, study_id) not in labels and self.settings.labels != "none":
                    self.tally.note("study without published labels", f"s{study_id}")
            if not (suffix := present(where, image)):
                self.tally.leave_out("image file missing", f"{where}/{image}.jpg")
                continue
            studies.append(
                Study(
                    image_id=image,
                    patient_id=patient,
                    study_id=study_id,
                    image_path=f"{base}/{where}/{image}{suffix}",
                    split=cast(Split, splits.get(image, "")),
                    view=study_view(self.tally, *views.get(image, ())),
                    findings_text=texts[study_id][0],
                    impression_text=texts[study_id][1],
                    labels=labels.get((patient, study_id), {}),
                )
            )
        nothing = (
            f"no image of {self._table('split').name} is in {base} (looked for p10/p10000001/s50000001/DICOM_ID.jpg "
            f"and the like)"
        )
        return finish(studies, times, self.seed, self.tally, nothing)

    def _rows(self, name: str) -> Iterator[Row]:
        path = self._table(name)
        if absent := sorted(set(_NEEDED[name]) - set(columns_of(path) or [])):
            raise UserError(f"{path} has no column {absent[0]!r}. Is it the file of the release?")
        yield from read_rows(path, [*_NEEDED[name], *_MORE.get(name, ())])

    def _images(
        self,
    ) -> tuple[list[_IMAGE_KEY], dict[str, str], dict[str, tuple[str, ...]], dict[StudyKey, float | None]]:
        """(all images, each study's together; splits; what is said of views; times), of the split file and the
        metadata."""
        splits, views, keys = dict[str, str](), dict[str, tuple[str, ...]](), dict[str, _IMAGE_KEY]()
        times: dict[StudyKey, float | None] = {}
        for row in self._rows("split"):
            key = _key(row)
            keys[key[2]] = key
            splits[key[2]] = {"valid": "validate", "val": "validate"}.get(cell(row, "split"), cell(row, "split"))
            if splits[key[2]] not in SPLITS:
                raise UserError(
                    f"{self._table('split')}, image {key[2]}: the split {cell(row, 'split')!r} is not known."
                )
        for row in self._rows("metadata"):
            key = _key(row)
            if key[2] not in keys:
                self.tally.note("image without a row in the split file (its patient's split, else by hash)", key[2])
            keys[key[2]] = key
            views[key[2]] = cell(row, "ViewPosition"), cell(row, "ViewCodeSequence_CodeMeaning")
            day, clock = id_of(row, "StudyDate"), cell(row, "StudyTime")
            time = date(f"{day} {clock}".strip())
            if time is None and (day or clock):
                self.tally.note("time of the study not readable", f"{key[2]}: {day} {clock}")
            known = times.get(key[:2])
            times[key[:2]] = known if time is None else time if known is None else min(time, known)
        for image in splits.keys() - views.keys():
            self.tally.note("image without a row in the metadata (no view, no time)", image)
            times.setdefault(keys[image][:2], None)
        return sorted(keys.values(), key=lambda key: key[:2]), splits, views, times

    def _labels(self, studies: set[StudyKey]) -> dict[StudyKey, dict[str, int]]:
        name, labels = self.settings.labels, dict[StudyKey, dict[str, int]]()
        if name == "none":
            return labels
        path = self._table(name)
        alike: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}  # a few thousand rows differ
        for row in self._rows(name):
            where = f"{path.name}, study {cell(row, 'study_id')}"
            states = labels_of({name: state_of(row.get(name), where) for name in OBSERVATIONS})
            labels[id_of(row, "subject_id"), id_of(row, "study_id")] = alike.setdefault(tuple(states.items()), states)
        if not studies & labels.keys():
            example = next(iter(labels), ("none", "none"))
            raise UserError(
                f"no row of {path} is of a study in the split file: e.g. subject_id {example[0]}, study_id "
                f"{example[1]}. Take the file of the release, or set source.mimic_cxr.labels to none."
            )
        return labels

    def _texts(self, studies: list[str]) -> dict[str, tuple[str, str]]:
        """Study -> (findings, impression), ("", "") where there is no report; read on all cores."""
        reports = [self._reports.read(study) for study in studies]
        read = in_processes(read_text, [report or "" for report in reports], "reports", "report")
        texts: dict[str, tuple[str, str]] = {}
        for study, report, text in zip(studies, reports, read, strict=True):
            if report is None:
                self.tally.note("study without a report file (its images are kept)", f"s{study}.txt")
            texts[study] = ("", "") if report is None else study_text(self.tally, f"s{study}", text)
        return texts


def _key(row: Row) -> _IMAGE_KEY:
    return id_of(row, "subject_id"), id_of(row, "study_id"), cell(row, "dicom_id")


def _present(base: Path) -> Callable[[str, str], str]:
    """Suffix of an image's file ("" where there is none) by its study's folder; each folder is listed once."""
    listed: tuple[str, Sequence[str]] = "", ()

    def suffix(folder: str, image: str) -> str:
        nonlocal listed
        if listed[0] != folder:
            try:
                listed = folder, os.listdir(base / folder)
            except OSError:
                listed = folder, ()
        return next((s for s in _SUFFIXES if image + s in listed[1]), "")

    return suffix
