"""A tiny tree in MIMIC-CXR's own layout: joined as published, told apart from what is not there, and never out of
order."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path

import pytest
from trees import ILL, OBSERVATIONS, Mimic, lines, mimic_report, picture, write

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings, load_settings
from llmcxr.recipe import Recipe
from llmcxr.recipes import SHIPPED
from llmcxr.sources.mimic_cxr import MimicCxrSettings, MimicCxrSource, Reports
from llmcxr.studies.cohort import select_cohort
from llmcxr.studies.reports import read_report


@pytest.fixture
def mimic() -> Mimic:
    """Patient 10000032 has two studies of one day, the earlier second in the table; 12000001 one without report and
    labels."""
    m = Mimic()
    m.add("aa-1", "50000001", "10000032", text=ILL)
    m.add("aa-2", "50000001", "10000032", view="LATERAL")
    m.add("bb-1", "50000002", "10000032", view="AP", clock="85330.64", text="Mild edema.")  # leading zeros are lost
    m.add("cc-1", "50000003", "10000033", view="", words="antero-posterior", day="21100101", clock="0.0", text="Clear.")
    m.add("dd-1", "50000004", "11000001", "validate", "LL", day="21100102", text="Small left effusion.")
    m.add("ee-1", "50000005", "12000001", "test", "PA", day="21100103", text="Normal.")
    m.add("ff-1", "50000006", "12000001", "test", "AP AXIAL", day="21100104")
    m.labels = {
        "50000001": {"Edema": 0.0, "No Finding": "", "Pleural Effusion": 1.0},
        "50000002": {"Edema": 1.0},
        "50000004": {"Pleural Effusion": -1.0},
        "50000005": {"No Finding": 1.0},
    }
    return m


def source(root: Path, **changes: object) -> MimicCxrSource:
    values = {"folder": root / "jpg", "reports": root / "mimic-cxr-reports.zip"} | changes
    return MimicCxrSource(build_settings(MimicCxrSettings, values), 0)


def collect(root: Path, **changes: object) -> MimicCxrSource:
    read = source(root, **changes)
    read.check()
    read.found = {s.image_id: s for s in read.studies(Path("unused"), 8)}  # type: ignore[attr-defined]
    return read


@pytest.mark.parametrize(
    ("gz", "wrapper", "floats", "version"),
    [(True, "", False, "2.0.0"), (False, "mimic-cxr-reports/", True, "2.1.0"), (True, "a/b/", True, "2.0.0")],
)
def test_the_release_is_read_as_it_is(tmp_path, mimic, gz, wrapper, floats, version):
    """Packed or not, with ids that pandas has made floats or not, reports in any folder of the zip file: the same
    studies."""
    mimic.write(tmp_path, gz, wrapper, floats, version=version)
    read = collect(tmp_path)
    found, base = read.found, tmp_path / "jpg" / "files"
    assert dataclasses.asdict(found["aa-1"]) == {
        "image_id": "aa-1",
        "patient_id": "10000032",
        "study_id": "50000001",
        "image_path": str(base / "p10" / "p10000032" / "s50000001" / "aa-1.jpg"),
        "split": "train",
        "view": "PA",
        "order": 1,
        "findings_text": ILL,
        "impression_text": ILL,
        "labels": {"Edema": 0, "Pleural Effusion": 1},
        "truth": (),
        "mask_path": "",
    }
    assert [found[i].order for i in ("aa-2", "bb-1", "cc-1", "ee-1", "ff-1")] == [1, 0, 0, 0, 1]
    assert [found[i].view for i in ("aa-2", "bb-1", "cc-1", "dd-1", "ff-1")] == [
        "LATERAL",
        "AP",
        "AP",
        "LATERAL",
        "LORDOTIC",
    ]
    assert [s.split for s in found.values()] == ["train"] * 4 + ["validate", "test", "test"]
    assert found["dd-1"].labels == {"Pleural Effusion": -1} and found["ff-1"].labels == {} == found["cc-1"].labels
    assert found["ee-1"].labels["Pneumothorax"] == 0 and "Support Devices" not in found["ee-1"].labels
    assert found["ff-1"].impression_text == "" and not read.tally.left_out
    assert read.tally.noted == {
        "study without a report file (its images are kept)": 1,
        "study without published labels": 2,
    }


def test_reports_unpacked_at_any_depth_and_beside_the_folder(tmp_path, mimic):
    mimic.write(tmp_path)
    wanted = collect(tmp_path).found
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip") as archive:
        archive.extractall(tmp_path / "deep" / "physionet" / "2.0.0")
    assert collect(tmp_path, reports=tmp_path / "deep").found == wanted
    assert collect(tmp_path, reports=None).found == wanted, "the zip file lies beside the folder"
    (tmp_path / "mimic-cxr-reports.zip").unlink()
    shutil.copytree(tmp_path / "deep" / "physionet" / "2.0.0" / "files", tmp_path / "jpg" / "files", dirs_exist_ok=True)
    assert collect(tmp_path, reports=None).found == wanted, "or they lie among the images"


def test_the_folder_may_be_any_above_the_release(tmp_path, mimic):
    """As `wget -r` leaves it."""
    mimic.write(tmp_path)
    release = tmp_path / "physionet.org" / "files" / "mimic-cxr-jpg" / "2.1.0"
    release.parent.mkdir(parents=True)
    (tmp_path / "jpg").rename(release)
    found = collect(tmp_path, folder=tmp_path / "physionet.org").found
    assert len(found) == 7 and found["aa-1"].image_path.startswith(str(release / "files" / "p10"))


def test_dicom_files_with_tables_elsewhere(tmp_path, mimic):
    mimic.write(tmp_path, suffix=".dcm")
    (tmp_path / "tables").mkdir()
    for path in (tmp_path / "jpg").glob("*.csv.gz"):
        path.rename(tmp_path / "tables" / path.name)
    found = collect(tmp_path, tables=tmp_path / "tables", labels="negbio").found
    assert len(found) == 7 and {Path(s.image_path).suffix for s in found.values()} == {".dcm"}


def test_parts_of_a_tree(tmp_path, mimic):
    """A follow-up does not become the first because the first has no image; rows that are missing are counted."""
    mimic.write(tmp_path)
    base = tmp_path / "jpg"
    shutil.rmtree(base / "files" / "p10" / "p10000032" / "s50000002")
    rows = [[i[0], i[2], i[1], i[4], i[5], i[6]] for i in mimic.images if i[0] != "dd-1"]
    rows += [["gg-1", "13000001", "50000007", "PA", "unknown", ""]]
    picture(base / "files" / "p13" / "p13000001" / "s50000007" / "gg-1.jpg", 9)
    (base / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    write(
        base / "mimic-cxr-2.0.0-metadata.csv",
        lines("dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime", rows),
    )
    read = collect(tmp_path)
    assert read.tally.left_out == {"image file missing": 1}
    assert read.found["aa-1"].order == 1 and read.found["dd-1"].view == "" and read.found["dd-1"].order == 0
    assert read.found["gg-1"].split in ("train", "validate", "test")
    noted = read.tally.noted
    assert noted["image without a row in the metadata (no view, no time)"] == 1
    assert noted["image without a row in the split file (its patient's split, else by hash)"] == 1
    assert noted["time of the study not readable"] == 1 and noted["view unknown"] == 2
    assert read.tally.examples["image file missing"] == ["p10/p10000032/s50000002/bb-1.jpg"]


def test_a_patient_with_a_time_that_is_missing_has_no_known_first(tmp_path, mimic):
    mimic.images[2][5:7] = ["", ""]
    mimic.write(tmp_path)
    read = collect(tmp_path)
    assert [read.found[i].order for i in ("aa-1", "bb-1", "cc-1")] == [None, None, 0]
    assert read.tally.noted["patient of several studies whose order is not known"] == 1


def test_a_report_without_headings_and_one_that_says_nothing(tmp_path, mimic):
    mimic.reports["50000003"] = mimic_report("The lungs are clear.", headings=False)
    mimic.reports["50000005"] = " \n"
    mimic.write(tmp_path)
    read = collect(tmp_path)
    assert read.found["ee-1"].impression_text == "" and read.tally.noted["image without a report"] == 1


def test_labels_of_nobody_and_none(tmp_path, mimic):
    mimic.write(tmp_path)
    read = collect(tmp_path, labels="none")
    assert not any(s.labels for s in read.found.values())
    path = tmp_path / "jpg" / "mimic-cxr-2.0.0-chexpert.csv"
    path.with_suffix(".csv.gz").unlink()
    write(path, lines(f"subject_id,study_id,{OBSERVATIONS}", [["1", "2", *[""] * 14]]))
    with pytest.raises(
        UserError, match="no row of .*chexpert.csv is of a study in the split file: e.g. subject_id 1, study_id 2"
    ):
        collect(tmp_path)


def test_a_root_without_reports_is_an_error(tmp_path, mimic):
    """Exit 0 and a table without text before."""
    mimic.write(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty holds no report: looked for files named s########.txt .*source.mimic_cxr.reports"
    ):
        collect(tmp_path, reports=tmp_path / "empty")
    write(tmp_path / "other" / "files" / "p10" / "p10000099" / "s59999999.txt", "FINDINGS: x")
    with pytest.raises(UserError, match=r"none of its 1 reports is of a study in .*split.csv.gz, e.g. s59999999.txt"):
        collect(tmp_path, reports=tmp_path / "other")
    (tmp_path / "broken.zip").write_bytes((tmp_path / "mimic-cxr-reports.zip").read_bytes()[:-40])
    with pytest.raises(UserError, match="broken.zip is neither a folder nor a readable zip file"):
        collect(tmp_path, reports=tmp_path / "broken.zip")
    (tmp_path / "mimic-cxr-reports.zip").unlink()
    with pytest.raises(UserError, match="no reports were found in or beside .*looked for mimic-cxr-reports.zip"):
        collect(tmp_path, reports=None)


def test_what_is_missing_is_said_before(tmp_path, mimic):
    mimic.write(tmp_path, gz=False)
    with pytest.raises(UserError, match="(?s)no does not exist. Set source.mimic_cxr.folder.*physionet.org"):
        source(tmp_path, folder=tmp_path / "no").check()
    with pytest.raises(UserError, match="(?s)no.zip do not exist.*physionet.org"):
        source(tmp_path, reports=tmp_path / "no.zip").check()
    metadata = tmp_path / "jpg" / "mimic-cxr-2.0.0-metadata.csv"
    metadata.write_text(metadata.read_text().replace("ViewPosition", "View"))
    with pytest.raises(UserError, match="no column 'ViewPosition'"):
        collect(tmp_path)
    metadata.unlink()
    with pytest.raises(UserError, match=r"(?s)holds no mimic-cxr-2.0.0-metadata.csv.gz .or .csv.*physionet.org"):
        source(tmp_path).check()


def test_no_image_is_there(tmp_path, mimic):
    mimic.write(tmp_path)
    shutil.rmtree(tmp_path / "jpg" / "files")
    with pytest.raises(UserError, match="no image of mimic-cxr-2.0.0-split.csv.gz is in .*image file missing: 7"):
        collect(tmp_path)


def test_the_fingerprint_is_of_the_contents(tmp_path, mimic):
    mimic.write(tmp_path)
    before = source(tmp_path).fingerprint()
    assert source(tmp_path).fingerprint() == before
    mimic.reports["50000003"] = mimic_report("Changed.")
    mimic.write(tmp_path)
    assert source(tmp_path).fingerprint() != before


@pytest.mark.parametrize("name", ["mimic-cxr-paper", "mimic-cxr-qwen3"])
def test_the_recipes_cohorts(tmp_path, mimic, name):
    mimic.write(tmp_path)
    recipe = load_settings(
        Recipe,
        SHIPPED[name],
        [
            f"source.mimic_cxr.folder={tmp_path / 'jpg'}",
            f"source.mimic_cxr.reports={tmp_path / 'mimic-cxr-reports.zip'}",
        ],
    )
    assert recipe.source.mimic_cxr is not None
    train = [s for s in MimicCxrSource(recipe.source.mimic_cxr, 0).studies(tmp_path, 256) if s.split == "train"]

    def kept(stage: int) -> list[str]:
        return [s.image_id for s in select_cohort(train, recipe.tuning.stages[stage].cohort).studies]

    assert kept(0) == ["aa-1", "aa-2", "bb-1", "cc-1"], "all views and studies, findings and impression"
    assert kept(1) == ["bb-1", "cc-1"], "frontal, the patient's earliest study, with an impression"


def test_a_report_that_a_zip_file_makes_large(tmp_path):
    """60 kB that unpack to 60 MB: no more of it is unpacked than shows that it is no report."""
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s50000001.txt", b"A " * 30_000_000)
    text = Reports(tmp_path / "r.zip").read("50000001")
    assert text is not None and len(text) < 500_000 and read_report(text).problem.startswith("more than")
