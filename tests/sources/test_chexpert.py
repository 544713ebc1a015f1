"""CheXpert and CheXpert Plus in their own layouts, of invented patients."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import ILL, OBSERVATIONS, PLUS, WELL, chexpert_plus, lines, picture, write

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.sources.chexpert import OBSERVATIONS as KNOWN
from llmcxr.sources.chexpert import ChexpertSettings, ChexpertSource

HEAD = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def collect(folder: Path, **changes: object) -> ChexpertSource:
    read = ChexpertSource(build_settings(ChexpertSettings, {"folder": folder} | changes), 0)
    read.check()
    read.found = {s.image_id: s for s in read.studies(Path("unused"), 8)}  # type: ignore[attr-defined]
    return read


def chexpert(root: Path, *splits: str, patients: int = 4) -> None:
    """CheXpert's small release: a patient has a frontal and a lateral film, the first of each split two studies."""
    for k, split in enumerate(splits):
        rows = []
        for p in range(patients):
            stem = f"{split}/patient{100 * k + p:05d}/study1/view"
            blank = 0.0 if split != "train" else ""
            states = [blank] * 14
            states[10], states[5] = float(p % 2), -1.0
            rows.append([f"CheXpert-v1.0-small/{stem}1_frontal.jpg", "Female", 68, "Frontal", "AP", *states])
            rows.append([f"CheXpert-v1.0-small/{stem}2_lateral.jpg", "Female", 68, "Lateral", "", *states])
            picture(root / f"{stem}1_frontal.jpg", p)
            picture(root / f"{stem}2_lateral.jpg", p + 50)
        second = f"{split}/patient{100 * k:05d}/study2/view1_frontal.jpg"
        rows.append([f"CheXpert-v1.0-small/{second}", "Female", 69, "Frontal", "PA", 1.0, *[""] * 13])
        picture(root / second, 99)
        write(root / f"{split}.csv", lines(HEAD, rows))


def test_the_observations_are_those_of_both_data_sets():
    assert set(KNOWN) == set(OBSERVATIONS.split(",")) == set(HEAD.split(",")[5:])


def test_chexpert(tmp_path):
    chexpert(tmp_path / "CheXpert-v1.0-small", "train", "valid", "test")
    read = collect(tmp_path)
    found = read.found
    assert len(found) == 27 and not read.tally.left_out
    one, side = found["patient00001-study1-view1_frontal"], found["patient00001-study1-view2_lateral"]
    assert (one.patient_id, one.study_id, one.view, one.order) == ("patient00001", "patient00001-study1", "AP", 0)
    assert (side.view, side.study_id) == ("LATERAL", one.study_id)
    assert one.labels == {"Pleural Effusion": 1, "Edema": -1}, "a blank is unknown"
    normal = found["patient00000-study2-view1_frontal"]
    assert normal.labels["Pneumothorax"] == 0 and "Support Devices" not in normal.labels
    assert normal.order is None and read.tally.noted["patient of several studies whose order is not known"] == 3
    splits = {s.patient_id: s.split for s in found.values()}
    assert splits["patient00001"] == "train" and splits["patient00100"] == "validate"
    assert splits["patient00200"] == "test"
    assert found["patient00101-study1-view1_frontal"].labels["Fracture"] == 0, "radiologists left no blanks"


def test_without_test_csv_valid_is_the_test_split(tmp_path):
    chexpert(tmp_path, "train", "valid", patients=60)
    splits = {s.patient_id: s.split for s in collect(tmp_path).found.values()}
    assert {splits[f"patient{100 + p:05d}"] for p in range(60)} == {"test"}
    train = [splits[f"patient{p:05d}"] for p in range(60)]
    assert set(train) == {"train", "validate"} and 1 <= train.count("validate") <= 15


def test_chexpert_plus(tmp_path):
    rows = chexpert_plus(tmp_path, 8)
    read = collect(tmp_path)
    found = read.found
    one = found["patient00001-study1-view1_frontal"]
    assert one.image_path.endswith("PNG/train/patient00001/study1/view1_frontal.png"), "the table says .jpg"
    assert (one.view, one.findings_text, one.impression_text, one.order) == ("AP", ILL, ILL, 0)
    assert one.labels == {"Pleural Effusion": 1, "Cardiomegaly": 1} and rows[1]["path_to_image"].endswith(".jpg")
    none = found["patient00000-study1-view1_frontal"]
    assert (none.findings_text, none.impression_text) == ("", WELL), "the section is empty, the impression is not"
    assert {found[f"patient{k:05d}-study1-view1_frontal"].split for k in (6, 7)} == {"test"}
    assert not read.tally.left_out


def test_the_whole_report_where_sections_are_empty(tmp_path):
    rows = chexpert_plus(tmp_path, 2)
    rows[0] |= {"section_findings": "", "section_impression": "", "report": "FINDINGS: Clear. IMPRESSION: Normal."}
    rows[1] |= dict.fromkeys(("section_findings", "section_impression", "report"), "") | {
        "section_narrative": "Both clear."
    }
    write(tmp_path / "df_chexpert_plus_240401.csv", lines(PLUS, [row.values() for row in rows]))
    told = [(s.findings_text, s.impression_text) for s in collect(tmp_path).found.values()]
    assert told[0] == ("Clear.", "Normal.") and "Both clear." in told[1]


def test_the_order_is_the_release_s(tmp_path):
    """By number, not by text: the tenth study comes after the ninth; also where the first has no image."""
    rows = chexpert_plus(tmp_path, 1, labels="")
    more = []
    for study, order in ((1, "10.0"), (2, "9.0"), (3, "1")):
        stem = f"train/patient00000/study{study}/view1_frontal"
        more.append(rows[0] | {"path_to_image": f"{stem}.jpg", "patient_report_date_order": order, "split": "train"})
        if study != 3:
            picture(tmp_path / "PNG" / f"{stem}.png", study)
    write(tmp_path / "df_chexpert_plus_240401.csv", lines(PLUS, [row.values() for row in more]))
    read = collect(tmp_path)
    assert {s.study_id[-6:]: s.order for s in read.found.values()} == {"study1": 2, "study2": 1}
    assert (
        read.tally.left_out == {"image file missing": 1} and not read.found["patient00000-study1-view1_frontal"].labels
    )


def test_what_does_not_belong_is_said(tmp_path):
    chexpert_plus(tmp_path, 2)
    path = tmp_path / "chexbert_labels" / "impression_fixed.json"
    path.write_text(path.read_text().replace("train/", "other/").replace("valid/", "other/"))
    with pytest.raises(UserError, match="no line of .*impression_fixed.json is of an image in the table"):
        collect(tmp_path)
    path.unlink()
    table = tmp_path / "df_chexpert_plus_240401.csv"
    table.write_text(table.read_text().replace("path_to_image", "image"))
    with pytest.raises(UserError, match="no column 'path_to_image'"):
        collect(tmp_path)
    table.unlink()
    with pytest.raises(
        UserError, match="(?s)holds neither df_chexpert_plus_240401.csv nor train.csv.*aimi.stanford.edu"
    ):
        collect(tmp_path)
    write(tmp_path / "train.csv", lines(HEAD, [["CheXpert-v1.0/train/patient1/study1/view1.jpg", *[""] * 18]]))
    with pytest.raises(UserError, match="no image of train.csv is below .*image file missing: 1"):
        collect(tmp_path / ".", images=tmp_path / "chexbert_labels")
