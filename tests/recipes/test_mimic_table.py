"""A tiny tree of MIMIC-CXR-JPG's own form, joined to a table, read by the table source, and asked for the paper's cohorts."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import load_script
from PIL import Image

from llmcxr.foundation.settings import load_settings
from llmcxr.recipe import Recipe
from llmcxr.recipes import SHIPPED
from llmcxr.sources.table import TableSource
from llmcxr.studies.cohort import select_cohort

table = load_script("scripts/make_mimic_table.py")

# dicom, study, patient, split, view, date, time (leading zeros lost, as in the release)
IMAGES = [
    ("aa-1", "50000001", "10000032", "train", "PA", "21800506", "213014.531"),
    ("aa-2", "50000001", "10000032", "train", "LATERAL", "21800506", "213014.531"),
    ("bb-1", "50000002", "10000032", "train", "AP", "21800506", "85330.64"),  # earlier the same day
    ("cc-1", "50000003", "10000033", "train", "AP", "21100101", "0.0"),
    ("dd-1", "50000004", "11000001", "validate", "PA", "21100102", "120000"),
    ("ee-1", "50000005", "12000001", "test", "", "21100103", "120000.5"),
    ("ff-1", "50000006", "12000001", "test", "PA", "21100104", "120000.5"),
]
REPORTS = {
    "10000032/s50000001": " FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n FINDINGS: \n \n The lungs\n are clear.\n\n"
    " IMPRESSION: \n \n No acute process. ___ called.",
    "10000032/s50000002": "FINDINGS:  Edema.\n\nIMPRESSION:  Mild edema.",
    "10000033/s50000003": "FINDINGS:  Effusion only in the findings.",
    "11000001/s50000004": "IMPRESSION:  Small left effusion.",
    "12000001/s50000005": "IMPRESSION:  Normal.",
}


@pytest.fixture
def tree(tmp_path) -> Path:
    """MIMIC-CXR-JPG in `jpg`, reports in `reports` and `reports.zip`. One study has no report, one no labels, one image no file."""
    jpg, reports = tmp_path / "jpg", tmp_path / "reports"
    frame = pd.DataFrame(
        IMAGES, columns=["dicom_id", "study_id", "subject_id", "split", "ViewPosition", "StudyDate", "StudyTime"]
    )
    jpg.mkdir()
    with gzip.open(jpg / "mimic-cxr-2.0.0-split.csv.gz", "wt") as stream:
        frame[["dicom_id", "study_id", "subject_id", "split"]].to_csv(stream, index=False)
    frame.assign(Rows=3056)[
        ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "StudyDate", "StudyTime"]
    ].to_csv(jpg / "mimic-cxr-2.0.0-metadata.csv", index=False)
    labels = frame[["subject_id", "study_id"]].drop_duplicates().iloc[:5].reset_index(drop=True)
    labels = labels.reindex(columns=["subject_id", "study_id", *table.LABELS])
    labels["Edema"] = [0.0, 1.0, None, None, None]
    labels["Pleural Effusion"] = [None, None, 1.0, 1.0, -1.0]
    labels.to_csv(jpg / "mimic-cxr-2.0.0-chexpert.csv", index=False)
    for image, study, patient, *_ in IMAGES:
        path = jpg / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{image}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if image != "ff-1":
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(path)
    with zipfile.ZipFile(tmp_path / "reports.zip", "w") as archive:
        for name, text in REPORTS.items():
            path = reports / "files" / f"p{name[:2]}" / f"p{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            archive.write(path, path.relative_to(reports))
    return tmp_path


def make(tree: Path, reports: str = "reports") -> Path:
    assert table.main([str(tree / "jpg"), "--reports", str(tree / reports), "-o", str(tree / "t.csv")]) == 0
    return tree / "t.csv"


def test_rows(tree, capsys):
    rows = pd.read_csv(make(tree), dtype=str, keep_default_na=False).to_dict("records")
    said = capsys.readouterr().out
    assert (
        "7 images" in said and "1 studies without a report file" in said and "1 studies without CheXpert labels" in said
    )
    assert [list(row) for row in rows] == [table.COLUMNS] * 7
    assert {k: rows[0][k] for k in list(table.COLUMNS)[:8]} == {
        "image": "files/p10/p10000032/s50000001/aa-1.jpg",
        "patient": "10000032",
        "study": "50000001",
        "view": "PA",
        "date": "2180-05-06T21:30:14.531",
        "split": "train",
        "findings": "The lungs are clear.",
        "impression": "No acute process. ___ called.",
    }
    assert rows[2]["date"] == "2180-05-06T08:53:30.640" and rows[3]["date"] == "2110-01-01T00:00:00.000"
    assert (rows[0]["pulmonary edema"], rows[2]["pulmonary edema"], rows[3]["pulmonary edema"]) == ("0.0", "1.0", "")
    assert rows[5]["pleural effusion"] == "-1.0" and rows[6]["impression"] == "" == rows[6]["opacity"]


def test_reports_in_a_zip_file(tree):
    assert make(tree).read_bytes() == make(tree, "reports.zip").read_bytes()


@pytest.mark.parametrize("name", ["mimic-cxr-paper", "mimic-cxr-qwen3"])
def test_the_recipes_read_it(tree, name):
    """The recipe's own table settings and cohorts, on the tree."""
    overrides = [f"source.table.path={make(tree)}", f"source.table.images={tree / 'jpg'}"]
    recipe = load_settings(Recipe, SHIPPED[name], overrides)
    assert recipe.source.table is not None
    source = TableSource(recipe.source.table, 0)
    studies = source.studies(tree, 256)
    assert dict(source.left_out) == {"image file missing": 1}
    by_id = {s.image_id: s for s in studies}
    assert list(by_id) == ["aa-1", "aa-2", "bb-1", "cc-1", "dd-1", "ee-1"]
    assert [by_id[i].order for i in ("aa-1", "aa-2", "bb-1", "cc-1")] == [1, 1, 0, 0]
    assert by_id["ee-1"].labels["pleural effusion"] == -1 and by_id["aa-1"].labels == {"pulmonary edema": 0}
    assert [s.split for s in studies] == ["train"] * 4 + ["validate", "test"]

    def kept(stage: int) -> list[str]:
        train = [s for s in studies if s.split == "train"]
        return [s.image_id for s in select_cohort(train, recipe.tuning.stages[stage].cohort).studies]

    assert kept(0) == ["aa-1", "aa-2", "bb-1", "cc-1"], "all views and studies, findings and impression"
    assert kept(1) == ["bb-1"], "frontal, the patient's earliest study, with an impression"


def test_what_is_missing_is_named(tree, capsys):
    def fails(*arguments: object) -> str:
        assert table.main([str(a) for a in arguments]) == 2
        return capsys.readouterr().err

    assert f"{tree / 'no'} does not exist" in fails(tree / "no", "--reports", tree / "reports")
    output = tree / "t.csv"
    assert f"{tree / 'no.zip'} do not exist" in fails(tree / "jpg", "--reports", tree / "no.zip", "-o", output)
    (tree / "jpg" / "mimic-cxr-2.0.0-chexpert.csv").rename(tree / "jpg" / "chexpert.csv")
    message = fails(tree / "jpg", "--reports", tree / "reports", "-o", output)
    assert f"{tree / 'jpg'} holds no mimic-cxr-2.0.0-chexpert.csv.gz" in message and "physionet.org" in message
    (tree / "jpg" / "chexpert.csv").rename(tree / "jpg" / "mimic-cxr-2.0.0-chexpert.csv")
    metadata = tree / "jpg" / "mimic-cxr-2.0.0-metadata.csv"
    metadata.write_text(metadata.read_text().replace("ViewPosition", "View"))
    assert "no column 'ViewPosition'" in fails(tree / "jpg", "--reports", tree / "reports", "-o", output)
    assert not output.exists()
