"""CheXpert and CheXpert Plus, as published.

- Hospital: Stanford Hospital, Stanford, California; 2002 to 2017, inpatients and outpatients.
- CheXpert: 224,316 radiographs of 65,240 patients with 14 labels, no reports. CheXpert Plus: 223,228 of them as DICOM
  or PNG with their reports (187,711 studies of 64,725 patients).
- Access: Stanford AIMI, after registration and Stanford's research use agreement; research only, not to be passed on.
- Citation: Irvin et al., AAAI 2019 (CheXpert); Chambon et al., 2024 (CheXpert Plus).
- A blank label: the report does not mention the finding, so it is unknown. CheXpert's `valid.csv` and `test.csv` were
  read by radiologists and have no blanks.

CheXpert (invented):

    train.csv, valid.csv[, test.csv]
        Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,...,Pleural Effusion,...
        CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,,...,1.0,...
    train/patient00001/study1/view1_frontal.jpg

CheXpert Plus (invented; a study has several texts, each in a column):

    df_chexpert_plus_240401.csv
        path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,section_narrative,
        ...,section_findings,section_impression,...,split
        train/patient00001/study1/view1_frontal.jpg,...,Frontal,AP,patient00001,2,"NARRATIVE: ...",...,Small left effusion.,...
    PNG/train/patient00001/study1/view1_frontal.png         (the table says .jpg)
    chexbert_labels/{report,impression,findings}_fixed.json     one line of JSON an image: path_to_image, and 1, 0, -1 or null

The order of studies is the release's own in CheXpert Plus (`patient_report_date_order`; it gives no dates to check it
by); CheXpert gives none, so that a patient of several studies has no known first. Where there is no `test.csv`, `valid`
is the test split, as most publications have it, and a tenth of the training patients, by hash of the id, validate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tqdm import tqdm

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, setting, settings_to_dict
from llmcxr.labelling.terms import CHEXPERT
from llmcxr.sources.base import Tally, finish, folders_below, read_text, study_text, study_view
from llmcxr.sources.rows import Row, cell, columns_of, id_of, labels_of, read_rows, state_of
from llmcxr.sources.times import StudyKey, number
from llmcxr.studies.cohort import split_of
from llmcxr.studies.findings import NO_FINDING
from llmcxr.studies.study import Split, Study

# What CheXpert's labeller observes, which MIMIC-CXR-JPG's tables have too; labels keep these names.
OBSERVED = tuple(CHEXPERT)
OBSERVATIONS = (*OBSERVED, NO_FINDING)

_ACCESS = (
    "CheXpert and CheXpert Plus are given by Stanford AIMI after registration and Stanford's research use agreement: "
    "aimi.stanford.edu/datasets."
)
_PART = re.compile(r"(?:^|/)((train|valid|test)/(patient\w+)/(study\w+)/[^/]+)\.\w+$")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_PLUS = ("path_to_image", "deid_patient_id", "patient_report_date_order", "frontal_lateral", "ap_pa", "split", "report")
_TEXTS = ("section_findings", "section_impression", "section_narrative", "section_summary")


@dataclass(frozen=True)
class ChexpertSettings(Settings):
    folder: Path = setting(
        Path(), "the folder of CheXpert or CheXpert Plus as downloaded; tables and images are found in it"
    )
    images: Path | None = setting(None, "folder of the images where they are not in `folder`")
    labels: Literal["impression", "report", "findings"] = setting(
        "impression",
        "CheXpert Plus: of which text CheXbert's labels are read; without their file reports are labelled here",
    )

    def build(self, seed: int, access: str) -> ChexpertSource:
        """The source that reads this folder."""
        return ChexpertSource(self, seed, access)

    def faults(self) -> list[str]:
        return ["folder: is required"] if self.folder == Path() else []


class ChexpertSource:
    """The studies of CheXpert or CheXpert Plus."""

    about = (
        "CheXpert or CheXpert Plus (Stanford Hospital; Irvin et al., 2019; Chambon et al., 2024), under Stanford's "
        "research use agreement: for research only, not to be passed on. The model has learned from them."
    )
    simulated = False
    assumed_images = 223_228
    assumed_words = (35, 45)  # few reports have findings; impressions are long
    assumed_reports = ()
    findings = OBSERVED

    def __init__(self, settings: ChexpertSettings, seed: int, access: str = "") -> None:
        self.settings, self.seed, self.access = settings, seed, access.strip() or _ACCESS
        self.folder = settings.folder
        self.images = self.folder if settings.images is None else settings.images
        self.tally = Tally()

    @property
    def on_disk(self) -> bool:
        """Whether its folder is there."""
        return self.folder.is_dir()

    def check(self) -> None:
        """`UserError` where folders or tables are missing."""
        for name, path in (("folder", self.folder), ("images", self.images)):
            if not path.is_dir():
                raise UserError(
                    f"the folder {path} does not exist. Set source.chexpert.{name} to where it is.\n{self.access}"
                )
        if not self._tables():
            raise UserError(
                f"{self.folder} holds neither df_chexpert_plus_240401.csv nor train.csv or valid.csv (looked three "
                f"folders deep). Set "
                f"source.chexpert.folder to the folder of the download.\n{self.access}"
            )

    def fingerprint(self) -> Any:
        """Settings, seed and the contents of the tables; changed images are not seen."""
        files = [*self._tables(), *filter(None, [self._label_file()])] if self.on_disk else []
        return ["chexpert", settings_to_dict(self.settings), self.seed, [[p.name, fingerprint(p)] for p in files]]

    def _tables(self) -> list[Path]:
        """The table of CheXpert Plus, or those of CheXpert."""
        for folder in folders_below(self.folder, 3):
            if plus := sorted(folder.glob("df_chexpert_plus_*.csv*")):
                return plus[-1:]
            if tables := [p for n in ("train", "valid", "test") for p in sorted(folder.glob(f"{n}.csv*"))]:
                return tables
        return []

    def _label_file(self) -> Path | None:
        name = f"{self.settings.labels}_fixed.json"
        return next((folder / name for folder in folders_below(self.folder, 3) if (folder / name).is_file()), None)

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """Read the tables to studies; missing images, rows without a label and reports without text are counted.

        Raises `UserError` where tables are missing or lack a column, and where no image of theirs is there.
        """
        self.check()
        self.tally.clear()
        tables = self._tables()
        plus = tables[0].name.startswith("df_chexpert_plus")
        rows = [(row, table.name) for table in tables for row in self._rows(table, plus)]
        labels = self._published_labels({cell(row, "path_to_image") for row, _ in rows}) if plus else {}
        bases = self._bases()
        has_test = any("/test/" in f"/{cell(row, 'Path')}" for row, _ in rows)
        studies, times = [], dict[StudyKey, float | None]()
        for row, table in tqdm(rows, desc="CheXpert", unit="image"):
            path = cell(row, "path_to_image" if plus else "Path")
            if not (part := _PART.search(path)):
                self.tally.leave_out(
                    "path of another form than train/patient.../study.../view....jpg", f"{table}: {path}"
                )
                continue
            stem, split, patient, study = part.groups()
            patient = id_of(row, "deid_patient_id") or patient
            key = patient, f"{patient}-{study}"
            times[key] = number(cell(row, "patient_report_date_order"))
            if (
                image := next(
                    (f for base in bases for s in _SUFFIXES if os.path.isfile(f := base / f"{stem}{s}")), None
                )
            ) is None:
                self.tally.leave_out("image file missing", path)
                continue
            findings, impression = self._text(row, path) if plus else ("", "")
            states = labels.get(path) if plus else self._states(row, table)
            studies.append(
                Study(
                    image_id=f"{patient}-{study}-{PurePosixPath(stem).name}",
                    patient_id=patient,
                    study_id=key[1],
                    image_path=str(image),
                    split=self._split(cell(row, "split") or split, patient, has_test),
                    view=study_view(self.tally, *self._views(row)),
                    findings_text=findings,
                    impression_text=impression,
                    labels=states or {},
                )
            )
        where = (
            f"no image of {', '.join(t.name for t in tables)} is below {self.images} (looked for "
            f"train/patient.../study.../ there)"
        )
        return finish(studies, times, self.seed, self.tally, where)

    def _rows(self, table: Path, plus: bool) -> Iterator[Row]:
        wanted = [*_PLUS, *_TEXTS] if plus else ["Path", "Frontal/Lateral", "AP/PA", *OBSERVATIONS]
        needed = ["path_to_image", "split"] if plus else ["Path"]
        if absent := sorted(set(needed) - set(columns_of(table) or [])):
            raise UserError(f"{table} has no column {absent[0]!r}. Is it the file of the release?")
        yield from read_rows(table, wanted)

    def _bases(self) -> list[Path]:
        """Folders that hold train/ or valid/ with folders of patients."""
        inner = [f for f in folders_below(self.images, 5) if f.name in ("train", "valid", "test")]
        return list(dict.fromkeys(f.parent for f in inner)) or [self.images]

    def _text(self, row: Row, path: str) -> tuple[str, str]:
        findings, impression = cell(row, "section_findings"), cell(row, "section_impression")
        # Some studies have their whole text in one of the other sections.
        rest = cell(row, "section_narrative") or cell(row, "section_summary")
        return study_text(self.tally, path, read_text(cell(row, "report") or rest, findings, impression))

    def _states(self, row: Row, where: str) -> dict[str, int]:
        return labels_of({name: state_of(row.get(name), f"{where}, column {name!r}") for name in OBSERVATIONS})

    def _published_labels(self, images: set[str]) -> dict[str, dict[str, int]]:
        """CheXbert's labels by path of the image, where their file is there."""
        if (path := self._label_file()) is None:
            return {}
        labels = {cell(row, "path_to_image"): self._states(row, path.name) for row in read_rows(path)}
        if not images & labels.keys():
            raise UserError(
                f"no line of {path} is of an image in the table, e.g. {next(iter(labels), 'none at all')}. Take the "
                f"file of the release."
            )
        if missing := len(images - labels.keys()):
            self.tally.noted["image without a line in the file of labels"] += missing
        return labels

    def _views(self, row: Row) -> tuple[str, str]:
        for side, projection in (("frontal_lateral", "ap_pa"), ("Frontal/Lateral", "AP/PA")):
            if side in row or projection in row:
                return cell(row, projection), cell(row, side)
        return "", ""

    def _split(self, name: str, patient: str, has_test: bool) -> Split:
        if name == "train":
            own = {"train": 0.9, "validate": 0.1}
            return "train" if has_test else split_of(patient, self.seed, own)
        return "validate" if name == "valid" and has_test else "test"
