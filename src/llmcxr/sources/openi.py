"""The Indiana University collection of OpenI, as published by the National Library of Medicine or as on Kaggle.

- Hospitals: two large systems of the Indiana Network for Patient Care, Indiana; outpatients mostly.
- 7,470 radiographs (frontal and lateral) with 3,955 reports, of 3,955 studies; patients are not told apart, so that
  each study counts as a patient of its own.
- Access: open; CC BY-NC-ND 4.0: no commercial use, and no altered texts or images passed on.
- Citation: Demner-Fushman et al., JAMIA 2016.
- Removed names, dates and ages are XXXX. Labels are read from the reports; the MeSH tags of the release are not (they
  name what is there, and leave open what was not looked at: a tag that is missing is no denial).

As published (invented):

    NLMCXR_reports.tgz, or ecgen-radiology/1.xml     <AbstractText Label="FINDINGS">...</AbstractText>,
                                                     <parentImage id="CXR1_1_IM-0001-3001">
    NLMCXR_png/CXR1_1_IM-0001-3001.png               or NLMCXR_dcm/1/1_IM-0001-3001.dcm

Kaggle's copy (raddar/chest-xrays-indiana-university):

    indiana_reports.csv                              uid,MeSH,Problems,image,indication,comparison,findings,impression
    indiana_projections.csv                          uid,filename,projection
                                                     1,1_IM-0001-4001.dcm.png,Frontal
    images/images_normalized/1_IM-0001-4001.dcm.png

Views are said by the projections file alone; it is used with the XML reports too where it is there. Without it views
are unknown.
"""

from __future__ import annotations

import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Settings, setting, settings_to_dict
from llmcxr.sources.base import Tally, files_below, finish, read_text, study_text, study_view
from llmcxr.sources.rows import cell, columns_of, id_of, read_rows
from llmcxr.studies.study import Split, Study

_ACCESS = "The Indiana University collection is open: openi.nlm.nih.gov/faq (CC BY-NC-ND 4.0)."
# CXR1_1_IM-0001-3001, 1_IM-0001-3001.dcm, 1_IM-0001-4001.dcm.png: one image, of study 1.
_IMAGE = re.compile(r"(?:CXR)?(\d+)_(?:\1_)?(IM-[\d-]+)")


def image_key(name: str) -> tuple[str, str] | None:
    """(study, image) that the name of a file or of a report's image says; None for other names."""
    found = _IMAGE.match(name)
    return (found[1], f"{found[1]}_{found[2]}") if found else None


@dataclass(frozen=True)
class OpenISettings(Settings):
    folder: Path = setting(Path(), "the folder with images and reports as downloaded; images are found at any depth")
    reports: Path | None = setting(
        None,
        "NLMCXR_reports.tgz, a folder of its XML files, or indiana_reports.csv; where not set, looked for in `folder`",
    )

    def build(self, seed: int, access: str) -> OpenISource:
        """The source that reads this folder."""
        return OpenISource(self, seed, access)

    def faults(self) -> list[str]:
        return ["folder: is required"] if self.folder == Path() else []


@dataclass(frozen=True)
class _Report:
    findings: str
    impression: str
    images: tuple[str, ...]  # that it names


class OpenISource:
    """The studies of the Indiana University collection."""

    about = (
        "Radiographs and reports of the Indiana University collection (OpenI; Demner-Fushman et al., 2016), **CC "
        "BY-NC-ND 4.0**: for research only, not commercially."
    )
    simulated = False
    assumed_images = 7_470
    assumed_words = (32, 11)
    assumed_reports = ()
    findings = ()  # labels are read from reports

    def __init__(self, settings: OpenISettings, seed: int, access: str = "") -> None:
        self.settings, self.seed, self.access = settings, seed, access.strip() or _ACCESS
        self.folder = settings.folder
        self.tally = Tally()

    @property
    def on_disk(self) -> bool:
        """Whether its folder is there."""
        return self.folder.is_dir()

    def check(self) -> None:
        """`UserError` where the folder or the reports are missing."""
        if not self.folder.is_dir():
            raise UserError(
                f"the folder {self.folder} does not exist. Set source.openi.folder to where it is.\n{self.access}"
            )
        self._reports_path()

    def fingerprint(self) -> Any:
        """Settings, seed, and the contents of the reports and the projections."""
        content: list[str] = []
        if self.on_disk:
            path = self._reports_path()
            files = [path] if path.is_file() else sorted(path.glob("*.xml"))
            content = [fingerprint(p) for p in [*files, *filter(None, [self._named("indiana_projections.csv")])]]
        return ["openi", settings_to_dict(self.settings), self.seed, fingerprint(content)]

    def _named(self, *names: str) -> Path | None:
        lower = {name.lower() for name in names}
        return next(files_below(self.folder, lambda name: name.lower() in lower), None)

    def _reports_path(self) -> Path:
        if self.settings.reports is not None:
            path = self.settings.reports
            if not path.exists():
                raise UserError(f"the reports {path} do not exist. Set source.openi.reports to them.\n{self.access}")
            return path
        xml = next(files_below(self.folder, lambda name: re.fullmatch(r"\d+\.xml", name) is not None), None)
        if xml is not None:
            return xml.parent
        if found := self._named("NLMCXR_reports.tgz", "NLMCXR_reports.tar.gz", "indiana_reports.csv"):
            return found
        raise UserError(
            f"{self.folder} holds no reports: looked for NLMCXR_reports.tgz, XML files named as 1.xml, and "
            f"indiana_reports.csv, at any depth. "
            f"Set source.openi.reports.\n{self.access}"
        )

    def studies(self, folder: Path, image_size: int) -> list[Study]:
        """Join images, reports and projections; reports without an image and images without a report are counted.

        Raises `UserError` where no report can be read, where none is of an image, and where there is no image.
        """
        self.check()
        self.tally.clear()
        path = self._reports_path()
        reports = dict(_read_csv(path) if path.suffix == ".csv" else _read_xml(path))
        if not reports:
            raise UserError(f"{path} holds no report (looked for XML files named as 1.xml). Set source.openi.reports.")
        files = self._files()
        if files and not reports.keys() & {study for study, _ in files}:
            raise UserError(
                f"{path}: none of its {len(reports):,} reports is of an image in {self.folder}, e.g. report "
                f"{next(iter(reports))} and image {next(iter(files.values())).name}. Take reports and images of one "
                f"release."
            )
        projections = self._projections({name for _, name in files})
        for study, report in reports.items():
            named = {key for image in report.images if (key := image_key(image))}
            if not named and not any(s == study for s, _ in files):
                self.tally.leave_out("report without an image", f"report {study}")
            for _, name in sorted(named - files.keys()):
                self.tally.leave_out("image file missing", f"report {study}: {name}")
        studies = []
        for (study, name), file in tqdm(sorted(files.items()), desc="OpenI", unit="image"):
            if study not in reports:
                self.tally.note("image whose report is missing", name)
            said = reports.get(study, _Report("", "", ()))
            text = (
                study_text(self.tally, name, read_text("", said.findings, said.impression))
                if study in reports
                else ("", "")
            )
            studies.append(
                Study(
                    image_id=name,
                    patient_id=study,
                    study_id=study,
                    image_path=str(file),
                    split=cast(Split, ""),
                    view=study_view(self.tally, projections.get(name, "")),
                    findings_text=text[0],
                    impression_text=text[1],
                )
            )
        if not projections:
            self.tally.examples["view unknown"] = [
                f"no indiana_projections.csv in {self.folder}, which alone says views"
            ]
        times = dict.fromkeys(((s.patient_id, s.study_id) for s in studies), None)
        nothing = (
            f"no image is in {self.folder} (looked for names like CXR1_1_IM-0001-3001.png, 1_IM-0001-3001.dcm, at any "
            f"depth)"
        )
        return finish(studies, times, self.seed, self.tally, nothing)

    def _files(self) -> dict[tuple[str, str], Path]:
        files: dict[tuple[str, str], Path] = {}
        for path in files_below(self.folder, lambda name: name.lower().endswith((".png", ".dcm", ".jpg", ".jpeg"))):
            if (key := image_key(path.name)) is None:
                self.tally.leave_out("file of another name", path.name)
            elif key in files:
                self.tally.leave_out("image repeated", path.name)
            else:
                files[key] = path
        return files

    def _projections(self, images: set[str]) -> dict[str, str]:
        """Image -> what the projections file says."""
        path = self._named("indiana_projections.csv")
        if path is None:
            return {}
        views = {
            key[1]: cell(row, "projection") for row in read_rows(path) if (key := image_key(cell(row, "filename")))
        }
        if images and not views.keys() & images:
            raise UserError(
                f"no row of {path} is of an image in {self.folder}, e.g. {next(iter(views), 'none at all')}. Take the "
                f"file of the release."
            )
        return views


def _read_csv(path: Path) -> Iterator[tuple[str, _Report]]:
    if absent := sorted({"uid", "findings", "impression"} - set(columns_of(path) or [])):
        raise UserError(f"{path} has no column {absent[0]!r}. Is it indiana_reports.csv of the release?")
    for row in read_rows(path, ["uid", "findings", "impression"]):
        yield id_of(row, "uid"), _Report(cell(row, "findings"), cell(row, "impression"), ())


def _read_xml(path: Path) -> Iterator[tuple[str, _Report]]:
    for name, content in _members(path):
        try:
            root = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            raise UserError(f"{path}: {name} is not valid XML ({error}). Fetch it again.") from error
        sections = {e.get("Label", "").upper(): "".join(e.itertext()) for e in root.iter("AbstractText")}
        images = tuple(e.get("id", "") for e in root.iter("parentImage"))
        yield Path(name).stem, _Report(sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""), images)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the XML files of a folder or an archive."""
    if path.is_dir():
        for file in files_below(path, lambda name: re.fullmatch(r"\d+\.xml", name) is not None):
            yield file.name, file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if re.search(r"(^|/)\d+\.xml$", member.name) else None
                if stream is not None:
                    yield member.name, stream.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path} is not a readable archive of reports ({error}). Fetch it again.") from error
