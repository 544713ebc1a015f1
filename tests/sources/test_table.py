"""Small tables of every format with image files beside them; each dropped row is counted, each mistake is named."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.sources.table import TableSettings, collect
from llmcxr.studies.radiographs import load_all

ROWS = [
    # file, report, patient, study, split, view, date, effusion
    ("a.png", "FINDINGS: Clear. IMPRESSION: Normal.", 7, "s1", "train", "pa", "2020-01-05", 0),
    ("b.png", "IMPRESSION: Effusion.", 7, "s2", "train", "lateral", "2021-03-01", 1),
    ("c.png", "No heading", 8, "s3", "val", "AP", "2020-01-01", None),
    ("gone.png", "IMPRESSION: x", 9, "s4", "test", "AP", "2020-01-01", 1),
    ("d.png", " ", 10, "s5", "test", "AP", "2020-01-01", 1),
    ("a.png", "IMPRESSION: again", 7, "s1", "train", "PA", "2020-01-05", 0),
    ("e.png", "IMPRESSION: Doubt.", 11, "s6", "TEST", "", "2020-01-01", -1),
    (None, "IMPRESSION: y", 12, "s7", "test", "AP", "2020-01-01", 1),
]
COLUMNS = ["file", "report", "patient", "study", "split", "view", "date", "effusion"]
SETTINGS = {
    "image_column": "file",
    "report_column": "report",
    "patient_column": "patient",
    "study_column": "study",
    "split_column": "split",
    "view_column": "view",
    "order_column": "date",
    "label_columns": ["effusion"],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in "abcde":
        Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(tmp_path / "pictures" / f"{name}.png")
    frame = pd.DataFrame(ROWS, columns=COLUMNS)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in ROWS]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def settings(folder: Path, table: str = "t.csv", **changes) -> TableSettings:
    return build_settings(TableSettings, {"path": folder / table, "images": folder / "pictures", **SETTINGS, **changes})


@pytest.mark.parametrize("table", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_every_format_gives_the_same_studies(folder, table):
    result = collect(settings(folder, table), folder)
    assert result.dropped == Counter(
        {"image file missing": 1, "empty report": 1, "image repeated": 1, "no image named": 1}
    )
    a, b, c, e = result.studies
    assert dataclasses.asdict(a) == {
        "image_id": "a",
        "patient_id": "7",
        "study_id": "s1",
        "image_path": str(folder / "pictures" / "a.png"),
        "split": "train",
        "view": "PA",
        "order": 0,
        "findings_text": "Clear.",
        "impression_text": "Normal.",
        "labels": {"effusion": 0},
        "truth": (),
        "mask_path": "",
    }
    assert (b.order, b.view, b.labels, b.impression_text) == (1, "LATERAL", {"effusion": 1}, "Effusion.")
    assert (c.split, c.labels, c.impression_text) == ("validate", {}, "No heading")  # unknown is not negative
    assert (e.split, e.view, e.labels) == ("test", "", {"effusion": -1})


def test_images_can_be_loaded(folder):
    studies = collect(settings(folder), folder).studies
    assert load_all(studies, Path("elsewhere"), 8)[0].shape == (4, 8, 8)


def test_sections_in_two_columns_and_bare_ids(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text('id,f,i\n1,"Wrapped\nline",\n2,x,y\n')
    values = {"path": tmp_path / "t.csv", "image_column": "id", "image_suffix": ".png", "findings_column": "f"}
    result = collect(build_settings(TableSettings, values | {"impression_column": "i"}), tmp_path)
    assert [(s.image_id, s.findings_text, s.impression_text) for s in result.studies] == [("1", "Wrapped line", "")]
    assert result.dropped == {"image file missing": 1}


def test_splits_are_made_by_patient_and_do_not_depend_on_the_rows(folder):
    made = collect(settings(folder, split_column="", fractions={"train": 0.5, "test": 0.5}), folder).studies
    assert made[0].split == made[1].split
    seeds = [
        tuple(s.split for s in collect(settings(folder, split_column="", seed=seed), folder).studies)
        for seed in range(9)
    ]
    assert len(set(seeds)) > 1


def test_classes_and_reports_from_a_label(folder):
    (folder / "c.csv").write_text("file,kind\na.png,covid\nb.png,none\nc.png,\nd.png,other\n")
    only = {"path": folder / "c.csv", "images": folder / "pictures", "image_column": "file", "label_column": "kind"}
    reports = {"covid": "COVID-19 pneumonia.", "none": "No acute disease."}
    result = collect(build_settings(TableSettings, only | {"report_from_label": reports}), folder)
    assert [(s.impression_text, s.labels) for s in result.studies] == [
        ("COVID-19 pneumonia.", {"covid": 1, "none": 0, "other": 0}),
        ("No acute disease.", {"covid": 0, "none": 1, "other": 0}),
    ]
    assert result.dropped == {"empty report": 2}
    kept = collect(build_settings(TableSettings, only), folder).studies  # no reports are asked for: all rows stay
    assert [s.labels for s in kept][2:] == [{}, {"covid": 0, "none": 0, "other": 1}]
    with pytest.raises(UserError, match="'other' .*label_values"):
        collect(build_settings(TableSettings, only | {"label_values": ["covid", "none"]}), folder)
    with pytest.raises(UserError, match="'covd' does not occur.*nearest: covid"):
        collect(build_settings(TableSettings, only | {"report_from_label": {"covd": "x"}}), folder)


def test_same_stem_in_two_folders_gets_two_ids(folder):
    (folder / "pictures" / "more").mkdir()
    (folder / "pictures" / "a.png").rename(folder / "pictures" / "more" / "b.png")
    (folder / "s.csv").write_text("file\nb.png\nmore/b.png\n./b.png\n")
    result = collect(
        build_settings(
            TableSettings, {"path": folder / "s.csv", "images": folder / "pictures", "image_column": "file"}
        ),
        folder,
    )
    assert [s.image_id for s in result.studies] == ["b.png", "more-b.png"] and result.dropped == {"image repeated": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report_column": "reprot"}, "report_column: no column 'reprot', nearest: report"),
        ({"label_columns": ["Efusion"]}, r"label_columns\[0\]: no column 'Efusion', nearest: effusion"),
        ({"label_columns": ["study"]}, "row 2, column 'study': the label 's1' is not 1, 0, -1 or empty"),
        ({"images": Path("not/there")}, "not/there does not exist. Set source `images`"),
        ({"path": Path("nowhere.csv")}, "nowhere.csv does not exist. Set source `path`"),
        ({"split_names": {}}, "row 4: the split 'val' is not known"),
        ({"image_suffix": ".png"}, "no row of .*image file missing: 7.*image_suffix"),
        ({"patient_column": "view", "split_column": "split"}, "more than one split"),
    ],
)
def test_mistakes_are_named(folder, changes, message):
    if "patient_column" in changes:
        frame = pd.DataFrame(ROWS, columns=COLUMNS)
        frame["view"] = "one patient"
        frame.to_csv(folder / "t.csv", index=False)
    with pytest.raises(UserError, match=f"(?s){message}"):
        collect(settings(folder, **changes), folder)


def test_broken_tables_are_named(folder):
    (folder / "bad.jsonl").write_text('{"file": "a.png"}\n{"file": \n')
    (folder / "bad.csv").write_text("file,report\na.png,x,y,z,w\n'")
    (folder / "latin.csv").write_bytes("file,report\na.png,Münster\n".encode("latin-1"))
    (folder / "twice.csv").write_text("file,file\na.png,b.png\n")
    (folder / "empty.csv").write_text("")
    (folder / "head.csv").write_text("file,report\n")
    (folder / "bad.parquet").write_bytes(b"PAR1 nothing")
    (folder / "t.xlsx").write_bytes(b"x")
    for name, message in {
        "bad.jsonl": "bad.jsonl, line 2",
        "bad.csv": "bad.csv, line 2: more cells than the 2 columns",
        "latin.csv": "latin.csv cannot be read as csv",
        "twice.csv": "two columns 'file'",
        "empty.csv": "empty.csv has no rows",
        "head.csv": "head.csv has no rows",
        "bad.parquet": "bad.parquet cannot be read",
        "t.xlsx": "not .xlsx",
    }.items():
        with pytest.raises(UserError, match=message):
            collect(settings(folder, name), folder)


def test_impossible_settings_are_listed_together():
    with pytest.raises(UserError, match="4 faults"):
        build_settings(
            TableSettings,
            {
                "report_column": "r",
                "findings_column": "f",
                "report_from_label": {"a": "b"},
                "split_names": {"x": "dev"},
            },
        )


def test_real_radiographs():
    table = Path(__file__).parents[3] / "shared/data/real-cxr/labels.csv"
    if not table.exists():
        pytest.skip("the folder ../shared/data/real-cxr is not on this machine")
    values = {
        "path": table,
        "image_column": "file",
        "label_column": "label",
        "label_values": ["no_finding", "pneumonia", "covid"],
        "split_column": "split",
        "report_from_label": {
            "no_finding": "No acute cardiopulmonary abnormality.",
            "pneumonia": "Findings consistent with pneumonia.",
            "covid": "Findings consistent with COVID-19 pneumonia.",
        },
    }
    result = collect(build_settings(TableSettings, values), Path("unused"))
    assert len(result.studies) == 892 and not result.dropped
    assert Counter(s.split for s in result.studies) == {"train": 660, "validate": 98, "test": 134}
    assert sum(s.labels["covid"] for s in result.studies) == 104
    images, kept, dropped = load_all(result.studies[::30], Path("unused"), 64, workers=2)
    assert len(images) == len(kept) == 30 and not dropped
    assert 40 < images.mean() < 215 and images.std(axis=(1, 2)).min() > 15
