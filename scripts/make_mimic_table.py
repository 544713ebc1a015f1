"""Join the files of MIMIC-CXR-JPG and MIMIC-CXR into the one table that the recipes `mimic-cxr-*.yaml` read.

    python scripts/make_mimic_table.py data/mimic-cxr-jpg --reports data/mimic-cxr-reports.zip -o data/mimic-cxr.csv

Read from MIMIC-CXR-JPG (2.0.0 and later; .csv or .csv.gz): mimic-cxr-2.*-split, -metadata (ViewPosition, StudyDate, StudyTime) and
-chexpert (labels). Read from MIMIC-CXR: the reports, as the folder that holds files/p10/..., or as mimic-cxr-reports.zip.
The images themselves are not opened: images that are not there are left out, and counted, by the `studies` stage.

One row an image: image, patient, study, view, date, split, findings, impression, and the 14 CheXpert labels (1 present, 0 absent,
-1 uncertain, empty not mentioned) under this project's names of findings. Reports go through studies/report_sections.py.
The table holds patient data: keep it where the data are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.errors import UserError
from llmcxr.studies.report_sections import parse_report

ACCESS = (
    "MIMIC-CXR-JPG (images, labels) and MIMIC-CXR (reports) are given to credentialed PhysioNet users who have passed the CITI "
    "training and signed the data use agreement: physionet.org/content/mimic-cxr-jpg and physionet.org/content/mimic-cxr."
)
# Column of the CheXpert file -> column of the table: the labeller's name (labelling/rules.py) where it has the finding.
LABELS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "pulmonary edema",
    "Enlarged Cardiomediastinum": "enlarged cardiomediastinum",
    "Fracture": "fracture",
    "Lung Lesion": "lung lesion",
    "Lung Opacity": "opacity",
    "No Finding": "no finding",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "other pleural disease",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Support Devices": "support device",
}
COLUMNS = ["image", "patient", "study", "view", "date", "split", "findings", "impression", *LABELS.values()]
_NEEDED = {
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "metadata": ("dicom_id", "study_id", "subject_id", "ViewPosition", "StudyDate", "StudyTime"),
    "chexpert": ("study_id", "subject_id", *LABELS),
}


def read_release_table(root: Path, name: str) -> list[dict[str, str]]:
    """Rows of mimic-cxr-2.*-NAME.csv or .csv.gz in `root`; `UserError` where it is missing, broken or lacks a column."""
    paths = sorted(p for p in root.glob(f"mimic-cxr-2.*-{name}.csv*") if p.suffix in (".csv", ".gz"))
    if not paths:
        raise UserError(
            f"{root} holds no mimic-cxr-2.0.0-{name}.csv.gz (or .csv). Give the folder of MIMIC-CXR-JPG.\n{ACCESS}"
        )
    path = paths[-1]
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            if absent := sorted(set(_NEEDED[name]) - set(reader.fieldnames or [])):
                raise UserError(f"{path} has no column {absent[0]!r}. Is it the file of the release?")
            return list(reader)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). Download it again.") from error


def report_reader(reports: Path) -> Callable[[str], str | None]:
    """A function from a report's name (files/p10/p10000032/s50414267.txt) to its text, None where there is none."""
    if reports.is_dir():

        def from_folder(name: str) -> str | None:
            path = reports / name
            return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

        return from_folder
    try:
        archive = zipfile.ZipFile(reports)
    except FileNotFoundError as error:
        raise UserError(
            f"the reports {reports} do not exist. Give the folder that holds files/p10/..., or mimic-cxr-reports.zip.\n{ACCESS}"
        ) from error
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{reports} is neither a folder nor a readable zip file ({error}). Download it again."
        ) from error
    names = set(archive.namelist())
    return lambda name: archive.read(name).decode("utf-8", errors="replace") if name in names else None


def iso_time(date: str, time: str) -> str:
    """StudyDate 21800506 and StudyTime 85330.64 (leading zeros lost) -> 2180-05-06T08:53:30.640; text that sorts in time."""
    whole, _, fraction = time.partition(".")
    day, clock = date.partition(".")[0].zfill(8), whole.zfill(6)
    if not (day.isdigit() and clock.isdigit()):
        raise ValueError(f"date {date!r} and time {time!r} are not numbers")
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}.{fraction[:3].ljust(3, '0')}"


def rows_of(root: Path, reports: Path, left_out: Counter[str]) -> Iterator[dict[str, str]]:
    """Rows of the table in the order of the split file; `left_out` counts what lacks, by reason."""
    splits, metadata, labels = (read_release_table(root, name) for name in ("split", "metadata", "chexpert"))
    views = {row["dicom_id"]: row for row in metadata}
    known = {(row["subject_id"], row["study_id"]): row for row in labels}
    read = report_reader(reports)
    sections: dict[str, tuple[str, str]] = {}
    for row in splits:
        image, study, patient = row["dicom_id"], row["study_id"], row["subject_id"]
        folder = f"files/p{patient[:2]}/p{patient}/s{study}"
        if image not in views:
            left_out["images without a row in the metadata"] += 1
            continue
        if study not in sections:
            text = read(f"{folder}.txt")
            parsed = parse_report(text or "")
            sections[study] = parsed.findings, parsed.impression
            left_out["studies without a report file (their images are kept, without text)"] += text is None
            left_out["studies without CheXpert labels (kept)"] += (patient, study) not in known
        try:
            date = iso_time(views[image]["StudyDate"], views[image]["StudyTime"])
        except ValueError as error:
            raise UserError(f"metadata of image {image}: {error}. Correct the row.") from error
        found = known.get((patient, study), {})
        findings, impression = sections[study]
        yield {
            "image": f"{folder}/{image}.jpg",
            "patient": patient,
            "study": study,
            "view": views[image]["ViewPosition"],
            "date": date,
            "split": row["split"],
            "findings": findings,
            "impression": impression,
        } | {own: found.get(theirs, "") for theirs, own in LABELS.items()}


def make_table(root: Path, reports: Path, output: Path) -> tuple[int, Counter[str]]:
    """Write the table; returns its number of rows and what was left out or lacks something, by reason."""
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist. Give the folder of MIMIC-CXR-JPG.\n{ACCESS}")
    left_out: Counter[str] = Counter()
    number = 0
    with atomic_path(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for row in rows_of(root, reports, left_out):
            writer.writerow(row)
            number += 1
        if not number:
            raise UserError(f"the split file in {root} names no image. Is it the file of the release?")
    return number, +left_out


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 for a mistake that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of MIMIC-CXR-JPG")
    parser.add_argument(
        "--reports", type=Path, required=True, help="folder that holds files/p10/..., or mimic-cxr-reports.zip"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("data/mimic-cxr.csv"), help="the table (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        number, left_out = make_table(arguments.root, arguments.reports, arguments.output)
    except UserError as error:
        print(f"make_mimic_table: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.output}: {number} images")
    for reason, count in left_out.most_common():
        print(f"    {count} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
