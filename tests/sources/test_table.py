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
from llmcxr.foundation.settings import build_settings, load_settings
from llmcxr.recipe import Recipe
from llmcxr.recipes import SHIPPED
from llmcxr.sources.registry import SourceSettings, build_source, read_studies
from llmcxr.sources.table import TableSettings, TableSource
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import Study

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
    "columns": {
        "image": "file",
        "report": "report",
        "patient": "patient",
        "study": "study",
        "split": "split",
        "view": "view",
        "order": "date",
    },
    "label_columns": ["effusion"],
}


def columns(**changes: str) -> dict[str, str]:
    """The columns above, some of them others; "" for none."""
    return SETTINGS["columns"] | changes  # type: ignore[operator,return-value]


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


def collect(settings: TableSettings, seed: int = 0) -> tuple[list[Study], Counter[str]]:
    source = TableSource(settings, seed)
    return source.studies(Path("unused"), 8), source.tally.left_out


@pytest.mark.parametrize("table", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_every_format_gives_the_same_studies(folder, table):
    studies, left_out = collect(settings(folder, table))
    assert left_out == Counter({"image file missing": 1, "image repeated": 1, "no image named": 1})
    a, b, c, d, e = studies
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
    assert (d.image_id, d.findings_text, d.impression_text) == ("d", "", ""), "an image without a report is kept"
    assert (e.split, e.view, e.labels) == ("test", "", {"effusion": -1})


def test_images_can_be_loaded(folder):
    PixelStore.write(folder / "pixels.npy", collect(settings(folder))[0], Path("elsewhere"), 8)
    assert PixelStore.open(folder / "pixels.npy").shape == (5, 8, 8)


def test_sections_in_two_columns_and_bare_ids(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text('id,f,i\n1,"Wrapped\nline",\n2,x,y\n')
    values = {"path": tmp_path / "t.csv", "columns": {"image": "id", "findings": "f", "impression": "i"}}
    studies, left_out = collect(build_settings(TableSettings, values))
    assert [(s.image_id, s.findings_text, s.impression_text) for s in studies] == [("1", "Wrapped line", "")]
    assert left_out == {"image file missing": 1}


def test_splits_are_made_by_patient_and_do_not_depend_on_the_rows(folder):
    unsplit = settings(folder, columns=columns(split=""))
    made = collect(unsplit)[0]
    assert made[0].split == made[1].split
    seeds = [tuple(s.split for s in collect(unsplit, seed)[0]) for seed in range(9)]
    assert len(set(seeds)) > 1


def test_classes_and_reports_from_a_label(folder):
    (folder / "c.csv").write_text("file,kind\na.png,covid\nb.png,none\nc.png,\nd.png,other\n")
    named = {"image": "file", "label": "kind"}
    only = {"path": folder / "c.csv", "images": folder / "pictures", "columns": named}
    reports = {"covid": "COVID-19 pneumonia.", "none": "No acute disease.", "other": ""}
    collected, left_out = collect(build_settings(TableSettings, only | {"report_from_label": reports}))
    assert [(s.impression_text, s.labels) for s in collected[:2]] == [
        ("COVID-19 pneumonia.", {"covid": 1, "other": 0}),
        ("No acute disease.", {"covid": 0, "other": 0}),  # "none" is the absence of the others
    ]
    assert [s.impression_text for s in collected[2:]] == ["", ""] and not left_out
    kept, _ = collect(build_settings(TableSettings, only))  # no reports are asked for: all rows stay
    assert [s.labels for s in kept][2:] == [{}, {"covid": 0, "other": 1}]
    with pytest.raises(UserError, match="'other' .1 rows. has no line in report_from_label"):
        collect(build_settings(TableSettings, only | {"report_from_label": {"covid": "x", "none": "y"}}))
    with pytest.raises(UserError, match="'covd' does not occur.*nearest: covid"):
        collect(build_settings(TableSettings, only | {"report_from_label": reports | {"covd": "x"}}))


def test_same_stem_in_two_folders_gets_two_ids(folder):
    (folder / "pictures" / "more").mkdir()
    (folder / "pictures" / "a.png").rename(folder / "pictures" / "more" / "b.png")
    (folder / "s.csv").write_text("file\nb.png\nmore/b.png\n./b.png\n")
    values = {"path": folder / "s.csv", "images": folder / "pictures", "columns": {"image": "file"}}
    studies, left_out = collect(build_settings(TableSettings, values))
    assert [s.image_id for s in studies] == ["b.png", "more-b.png"] and left_out == {"image repeated": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": columns(report="reprot")}, "columns.report: no column 'reprot', nearest: report"),
        ({"label_columns": ["Efusion"]}, r"label_columns\[0\]: no column 'Efusion', nearest: effusion"),
        ({"label_columns": ["study"]}, "row 2, column 'study': the label 's1' is not 1, 0, -1 or empty"),
        ({"images": Path("not/there")}, "not/there does not exist. Set source `images`"),
        ({"path": Path("nowhere.csv")}, "nowhere.csv does not exist. Set its path"),
        ({"split_names": {}}, "row 4: the split 'val' is not known"),
        ({"images": Path()}, "no row of .*set source `images`.*image file missing: 7"),
        ({"columns": columns(patient="view")}, "more than one split"),
    ],
)
def test_mistakes_are_named(folder, changes, message):
    if changes.get("columns", {}).get("patient") == "view":
        frame = pd.DataFrame(ROWS, columns=COLUMNS)
        frame["view"] = "one patient"
        frame.to_csv(folder / "t.csv", index=False)
    with pytest.raises(UserError, match=f"(?s){message}"):
        collect(settings(folder, **changes))


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
            collect(settings(folder, name))


def test_impossible_settings_are_listed_together():
    with pytest.raises(UserError, match="5 faults"):
        build_settings(
            TableSettings,
            {
                "label_columns": ["Pleural_Effusion", "pleural effusion"],
                "columns": {"image": "i", "report": "r", "findings": "f"},
                "report_from_label": {"a": "b"},
                "split_names": {"x": "dev"},
            },
        )


def labels_of(folder: Path, cells: list[str], **changes) -> list[dict[str, int]]:
    frame = pd.DataFrame({"file": [f"{name}.png" for name in "abcde"][: len(cells)], "kind": cells})
    frame.to_csv(folder / "l.csv", index=False)
    values = {"path": folder / "l.csv", "images": folder / "pictures", "columns": {"image": "file", "label": "kind"}}
    return [s.labels for s in collect(build_settings(TableSettings, values | changes))[0]]


def test_a_cell_may_hold_several_labels(folder):
    cells = ["COVID-19, ARDS", "COVID-19", "No Finding", "ards|Pleural_Effusion", "pleural effusion"]
    names = ("ARDS", "COVID-19", "Pleural_Effusion")
    wanted = [(1, 1, 0), (0, 1, 0), (0, 0, 0), (1, 0, 1), (0, 0, 1)]
    told = labels_of(folder, cells)
    assert [tuple(labels[name] for name in names) for labels in told] == wanted and {len(t) for t in told} == {3}
    with pytest.raises(UserError, match="'ARDS' .1 rows. has no line in report_from_label"):
        labels_of(folder, cells[:2], report_from_label={"covid-19": "COVID-19."})


def test_a_label_that_says_nothing_is_unknown_and_counted(folder):
    """ "todo" was a class of its own, of which all others counted as absent."""
    (folder / "l.csv").write_text(
        'file,kind\na.png,todo\nb.png,Unknown\nc.png,"Mass, unknown"\nd.png,No Finding\ne.png,\n'
    )
    values = {"path": folder / "l.csv", "images": folder / "pictures", "columns": {"image": "file", "label": "kind"}}
    source = TableSource(build_settings(TableSettings, values), 0)
    assert [s.labels for s in source.studies(folder, 8)] == [{}, {}, {"Mass": 1}, {"Mass": 0}, {}]
    assert source.tally.noted == {"label that says nothing": 2}
    assert source.tally.examples["label that says nothing"][0].endswith("l.csv, row 2: todo")


def test_one_class_alone(folder):
    assert labels_of(folder, ["COVID-19", "covid 19", "", "COVID-19"]) == [
        {"COVID-19": 1},
        {"COVID-19": 1},
        {},
        {"COVID-19": 1},
    ]


def test_report_lines_of_several_labels(folder):
    lines = {"COVID-19": "COVID-19 pneumonia.", "ards": "ARDS.", "COVID-19, Mass": "Both."}
    named = {"image": "file", "label": "kind"}
    values = {"columns": named, "report_from_label": lines, "images": folder / "pictures"}
    (folder / "m.csv").write_text('file,kind\na.png,"COVID-19, ARDS"\nb.png,"COVID-19, Mass"\nc.png,Mass\n')
    studies, left_out = collect(build_settings(TableSettings, values | {"path": folder / "m.csv"}))
    assert [s.impression_text for s in studies] == ["COVID-19 pneumonia. ARDS.", "Both.", ""] and not left_out


def test_no_finding_is_the_absence_of_the_others(folder):
    rows = ["file,No Finding,Mass,Support Devices,Edema", "a.png,1,,,", "b.png,1,,1,-1", "c.png,0,1,,", "d.png,,0,,"]
    (folder / "n.csv").write_text("\n".join(rows))
    values = {"label_columns": rows[0].split(",")[1:], "columns": {"image": "file"}, "images": folder / "pictures"}
    source = TableSource(build_settings(TableSettings, values | {"path": folder / "n.csv"}), 0)
    assert [s.labels for s in source.studies(folder, 8)] == [
        {"Mass": 0, "Edema": 0},  # it says nothing of devices
        {"Mass": 0, "Support Devices": 1, "Edema": -1},
        {"Mass": 1},
        {"Mass": 0},
    ]
    assert source.findings == ["Mass", "Support Devices", "Edema"]


@pytest.mark.parametrize(
    "text", [",file\n0,a.png\n1,b.png\n", "file,\na.png,train\nb.png,x\n", "file,,\na.png,,\nb.png,1,2,\n"]
)
def test_a_column_without_a_name_is_no_setting(folder, text):
    """pandas' index, and commas at the ends of lines; taken for every column that is not set before."""
    (folder / "u.csv").write_text(text)
    values = {"path": folder / "u.csv", "images": folder / "pictures", "columns": {"image": "file"}}
    studies, _ = collect(build_settings(TableSettings, values))
    assert [(s.image_id, s.patient_id, s.study_id, s.view, s.labels) for s in studies] == [
        ("a", "a", "a", "", {}),
        ("b", "b", "b", "", {}),
    ]


def test_the_suffix_of_an_image_may_be_missing(folder):
    """Also where dots in the name look like one, as in the identifiers of DICOM."""
    picture = Image.fromarray(np.eye(4, dtype=np.uint8))
    for name in ("1.2.840.jpg", "g.jpeg", "h.png", "h.jpg"):
        picture.save(folder / "pictures" / name)
    (folder / "pictures" / "f.dcm").touch()
    (folder / "b.csv").write_text("name\na\na.png\nf\ng\nh\n1.2.840\nnone\n")
    values = {"path": folder / "b.csv", "images": folder / "pictures", "columns": {"image": "name"}}
    studies, left_out = collect(build_settings(TableSettings, values))
    assert [Path(s.image_path).name for s in studies] == ["a.png", "f.dcm", "g.jpeg", "h.png", "1.2.840.jpg"]
    assert left_out == {"image repeated": 1, "image file missing": 1}


def test_an_unknown_part_of_a_row_is_refused():
    values = {"path": "t.csv", "columns": {"image": "file", "patients": "id"}}
    with pytest.raises(UserError, match=r"columns\.patients: no such part of a row; nearest: patient"):
        build_settings(TableSettings, values)


def test_a_line_for_two_labels_names_two_findings(folder):
    lines = {"Mass, Edema": "Both.", "edema": "Edema.", "No Finding": "Normal."}
    block = {"path": folder / "t.csv", "columns": {"label": "kind"}, "report_from_label": lines}
    assert TableSource(build_settings(TableSettings, block), 0).findings == ["Mass", "Edema"]


def test_home_folders(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    here = TableSource(settings(folder), 0)
    home = TableSource(settings(Path("~"), images=Path("~/pictures")), 0)
    home.check()
    assert home.on_disk and home.studies(folder, 8) == here.studies(folder, 8)
    before = home.fingerprint()
    assert before == home.fingerprint() and json.dumps(before)
    (folder / "t.csv").write_text((folder / "t.csv").read_text().replace("Effusion.", "Large effusion."))
    assert home.fingerprint() != before
    monkeypatch.chdir(folder / "pictures")  # without `images`, they are beside the table
    (folder / "pictures" / "t.csv").write_text((folder / "t.csv").read_text())
    assert len(TableSource(settings(Path("~/pictures"), images=None), 0).studies(folder, 8)) == 5


def test_what_is_missing_is_said_before(folder):
    for changes, message in [
        ({"path": Path("no.csv")}, "the table no.csv does not exist.*Apply at the archive."),
        ({"images": Path("no")}, "the folder of the images, no, does not exist.*Apply at the archive."),
    ]:
        block = {"kind": "table", "access": "Apply at the archive.\n", "table": vars(settings(folder)) | changes}
        source = build_source(build_settings(SourceSettings, block), 0)
        with pytest.raises(UserError, match=f"(?s){message}$"):
            source.check()
        assert source.on_disk == ("images" in changes) and source.fingerprint()
    phantom = build_source(SourceSettings(), 0)
    phantom.check()
    assert phantom.simulated and not phantom.on_disk and not source.simulated


def test_real_radiographs(tmp_path):
    table = Path(__file__).parents[3] / "shared/data/real-cxr/labels.csv"
    if not table.exists():
        pytest.skip("the folder ../shared/data/real-cxr is not on this machine")
    values = {
        "path": table,
        "columns": {"image": "file", "label": "label", "split": "split"},
        "report_from_label": {
            "no_finding": "No acute cardiopulmonary abnormality.",
            "pneumonia": "Findings consistent with pneumonia.",
            "covid": "Findings consistent with COVID-19 pneumonia.",
        },
    }
    studies, left_out = collect(build_settings(TableSettings, values))
    assert len(studies) == 892 and not left_out
    assert Counter(s.split for s in studies) == {"train": 660, "validate": 98, "test": 134}
    assert sum(s.labels["covid"] for s in studies) == 104 and set(studies[0].labels) == {"pneumonia", "covid"}
    kept, notes = PixelStore.write(tmp_path / "pixels.npy", studies[::30], Path("unused"), 64)
    images = PixelStore.open(tmp_path / "pixels.npy")[:]
    assert len(images) == len(kept) == 30 and not any(note.left_out or note.implausible for note in notes)
    assert 40 < images.mean() < 215 and images.std(axis=(1, 2)).min() > 15


def test_a_follow_up_is_never_the_first(folder):
    """The first study has no image, the second is of a CT scanner; the third cell is no date."""
    rows = ["file,patient,when,kind", "gone.png,p,2020-01-01,CR", "a.png,p,2020-02-01,CR", "b.png,p,2019-01-01,CT"]
    rows += ["c.png,q,10,CR", "d.png,q,unknown,CR", "e.png,r,,CR"]
    (folder / "o.csv").write_text("\n".join(rows))
    named = {"image": "file", "patient": "patient", "order": "when", "modality": "kind"}
    values = {"path": folder / "o.csv", "images": folder / "pictures", "columns": named}
    source = TableSource(build_settings(TableSettings, values), 0)
    assert [(s.image_id, s.order) for s in source.studies(folder, 8)] == [("a", 1), ("c", None), ("d", None), ("e", 0)]
    assert source.tally.left_out == {"image file missing": 1, "modality CT": 1}
    assert source.tally.noted == {
        "time of the study not readable": 2,  # "10" is no date
        "patient of several studies whose order is not known": 1,
    }
    assert source.tally.examples["time of the study not readable"][1].endswith("o.csv, row 6: unknown")


def orders(folder: Path, cells: list[str], **changes: str) -> list[int | None]:
    rows = [f'{"abcde"[k]}.png,p,"{cell}"' for k, cell in enumerate(cells)]
    (folder / "o.csv").write_text("\n".join(["file,patient,when", *rows]))
    named = {"image": "file", "patient": "patient", "order": "when"}
    values = {"path": folder / "o.csv", "images": folder / "pictures", "columns": named} | changes
    return [s.order for s in collect(build_settings(TableSettings, values))[0]]


def test_time_is_not_text(folder):
    assert orders(folder, ["10", "9", "100"]) == [1, 0, 2]
    assert orders(folder, ["12/31/2018", "01/15/2019"], order_format="%m/%d/%Y") == [0, 1]
    assert orders(folder, ["January 22, 2020", "February 2, 2020"], order_format="%B %d, %Y") == [0, 1]
    assert orders(folder, ["3", "nan", "1"]) == [None] * 3, "one of them might be the first"
    with pytest.raises(UserError, match="column 'when': 2 of 2 cells are not .* Set source.table.order_format"):
        orders(folder, ["12/31/2018", "01/15/2019"])


def test_one_cell_that_is_no_number_turns_no_column_to_text(folder):
    """ "10" came before "3" for everyone where one cell was "unknown"."""
    rows = ["file,patient,when", "a.png,p,10", "b.png,p,3", "c.png,q,unknown", "d.png,q,1", "e.png,r,2"]
    (folder / "o.csv").write_text("\n".join(rows))
    named = {"image": "file", "patient": "patient", "order": "when"}
    source = TableSource(
        build_settings(TableSettings, {"path": folder / "o.csv", "images": folder / "pictures", "columns": named}), 0
    )
    assert [s.order for s in source.studies(folder, 8)] == [1, 0, None, None, 0]
    assert source.tally.noted["time of the study not readable"] == 1


def test_without_a_column_of_order_it_is_known_of_single_studies_alone(folder):
    """It was 0 for all, so that `earliest_only` kept every follow-up and said nothing."""
    (folder / "o.csv").write_text("file,patient\na.png,p\nb.png,p\nc.png,q\n")
    values = {
        "path": folder / "o.csv", "images": folder / "pictures", "columns": {"image": "file", "patient": "patient"}
    }  # fmt: skip
    source = TableSource(build_settings(TableSettings, values), 0)
    assert [s.order for s in source.studies(folder, 8)] == [None, None, 0]
    assert source.tally.noted == {"patient of several studies whose order is not known": 1}


def test_a_study_of_several_images_is_of_its_first(folder):
    """ "10" sorted before "9" as text."""
    rows = ["file,patient,study,when", "a.png,p,1,9", "b.png,p,1,10", "c.png,p,2,9.5"]
    (folder / "o.csv").write_text("\n".join(rows))
    named = {"image": "file", "patient": "patient", "study": "study", "order": "when"}
    values = {"path": folder / "o.csv", "images": folder / "pictures", "columns": named}
    assert [s.order for s in collect(build_settings(TableSettings, values))[0]] == [0, 0, 1]


@pytest.mark.parametrize(
    "cells",
    [
        ["Effusion|Mass", "No Finding", "Mass"],  # NIH
        ["['Effusion', 'Mass']", "['normal']", "[' mass ']"],  # PadChest
        ['["Effusion", "Mass"]', "[]", "[Mass]"],
        ["Effusion, Mass", "nan", "mass"],  # the COVID-19 collection
    ],
)
def test_published_ways_of_several_labels(folder, cells):
    told = labels_of(folder, [cell.replace("nan", "No Finding").replace("[]", "none") for cell in cells])
    assert [{k.casefold(): v for k, v in labels.items()} for labels in told] == [
        {"effusion": 1, "mass": 1},
        {"effusion": 0, "mass": 0},
        {"effusion": 0, "mass": 1},
    ]


def test_lists_in_parquet_and_json(folder):
    cells = [["Effusion", "Mass"], ["No Finding"], ["Mass"]]
    frame = pd.DataFrame({"file": ["a.png", "b.png", "c.png"], "kind": cells})
    frame.to_parquet(folder / "l.parquet")
    frame.to_json(folder / "l.jsonl", orient="records", lines=True)
    named = {"image": "file", "label": "kind"}
    for name in ("l.parquet", "l.jsonl"):
        values = {"path": folder / name, "images": folder / "pictures", "columns": named}
        told = [s.labels for s in collect(build_settings(TableSettings, values))[0]]
        assert told == [{"Effusion": 1, "Mass": 1}, {"Effusion": 0, "Mass": 0}, {"Effusion": 0, "Mass": 1}]


def test_nih_as_published(folder):
    """Images in numbered folders below, and a head that ends in a comma."""
    head = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    rows = [
        "00000001_001.png,Cardiomegaly|Emphysema,1,1,57,M,PA,2,2,0.1,0.1,",
        "00000001_000.png,No Finding,0,1,57,M,AP,2,2,0.1,0.1,",
    ]
    (folder / "Data_Entry_2017.csv").write_text("\n".join([head, *rows]))
    for k in range(2):
        (folder / f"images_00{k}" / "images").mkdir(parents=True)
        (folder / "pictures" / f"{'ab'[k]}.png").rename(folder / f"images_00{k}" / "images" / f"00000001_00{k}.png")
    named = {"image": "Image Index", "label": "Finding Labels", "patient": "Patient ID"}
    named |= {"view": "View Position", "order": "Follow-up #"}
    studies, left_out = collect(
        build_settings(TableSettings, {"path": folder / "Data_Entry_2017.csv", "columns": named})
    )
    assert [(s.image_id, s.view, s.order, s.labels) for s in studies] == [
        ("00000001_001", "PA", 1, {"Cardiomegaly": 1, "Emphysema": 1}),
        ("00000001_000", "AP", 0, {"Cardiomegaly": 0, "Emphysema": 0}),
    ] and not left_out


def test_a_name_in_two_folders_is_not_guessed(folder):
    for name in ("x", "y"):
        (folder / "pictures" / name).mkdir()
        (folder / "pictures" / name / "same.png").write_bytes((folder / "pictures" / "a.png").read_bytes())
    (folder / "n.csv").write_text("file\nsame.png\nx/same.png\nz/a.png\nx/same.jpg\n")
    values = {"path": folder / "n.csv", "images": folder, "columns": {"image": "file"}}
    studies, left_out = collect(build_settings(TableSettings, values))
    assert [Path(s.image_path).parent.name for s in studies] == ["x"], "below, but in the folder that is named"
    assert left_out == {"image file missing": 2, "image repeated": 1}


def test_ids_that_became_floats(folder):
    (folder / "f.csv").write_text(
        "file,patient,study\na.png,10000032.0,50414267.0\nb.png,10000032,50414267\nc.png,nan,\n"
    )
    named = {"image": "file", "patient": "patient", "study": "study"}
    source = TableSource(
        build_settings(TableSettings, {"path": folder / "f.csv", "images": folder / "pictures", "columns": named}), 0
    )
    studies = source.studies(folder, 8)
    assert [(s.patient_id, s.study_id) for s in studies] == [("10000032", "50414267")] * 2 + [("c", "c")]
    assert source.tally.noted["image without a patient (counted as one of its own)"] == 1


def test_what_is_amiss_with_texts_is_counted(folder):
    rows = [
        ["a.png", "FINDINGS: Clear."],
        ["b.png", "N/A"],
        ["c.png", "The heart is seen\ufffd. " + "The lungs are clear and the heart is not enlarged. " * 40],
        ["d.png", "None"],
    ]
    pd.DataFrame(rows, columns=["file", "report"]).to_csv(folder / "r.csv", index=False)
    named = {"image": "file", "report": "report"}
    values = {"path": folder / "r.csv", "images": folder / "pictures", "columns": named}
    source = TableSource(build_settings(TableSettings, values), 0)
    assert [bool(s.findings_text + s.impression_text) for s in source.studies(folder, 8)] == [True, False, True, False]
    assert source.tally.noted == {
        "image without a report": 2,
        "report: more than 300 words (a case history?)": 1,
        "report: lost characters (U+FFFD)": 1,
    }
    assert source.tally.examples["report: lost characters (U+FFFD)"][0].startswith("c: The heart is seen\ufffd.")


def test_the_covid_collection_from_its_own_table():
    recipe = load_settings(Recipe, SHIPPED["real-notes"])
    block = recipe.source.table
    assert block is not None
    here = Path(__file__).parents[3] / "shared" / "data" / "real-notes"
    if not here.exists():
        pytest.skip("the folder ../shared/data/real-notes is not on this machine")
    source = TableSource(dataclasses.replace(block, path=here / "metadata.csv", images=here / "images"), 0)
    chosen = read_studies(source, recipe.source, Path("unused"), 8)
    assert [rule.images for rule in chosen.rules] == [159, 146] and chosen.dropped == {"view LATERAL": 13}
    assert {s.view for s in chosen.studies} == {"PA", "AP"} and source.tally.left_out == {
        "image repeated, under another patient": 2
    }
    assert source.tally.noted["patient of several studies whose order is not known"] == 10
    assert source.tally.noted["image without a report"] == 40
    assert any(s.labels["COVID-19"] == s.labels["ARDS"] == 1 for s in chosen.studies)
    assert sum(bool(s.impression_text or s.findings_text) for s in chosen.studies) == 106
