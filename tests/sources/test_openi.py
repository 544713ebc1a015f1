"""The Indiana University collection as OpenI and as Kaggle publish it, of invented studies."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from trees import ILL, WELL, dicom, openi, openi_xml, picture, write

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.sources.openi import OpenISettings, OpenISource, image_key
from llmcxr.sources.registry import SourceSettings, read_studies


def collect(folder: Path, **changes: object) -> OpenISource:
    read = OpenISource(build_settings(OpenISettings, {"folder": folder} | changes), 0)
    read.check()
    read.found = {s.image_id: s for s in read.studies(Path("unused"), 8)}  # type: ignore[attr-defined]
    return read


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("CXR1_1_IM-0001-3001.png", ("1", "1_IM-0001-3001")),
        ("1_IM-0001-3001.dcm", ("1", "1_IM-0001-3001")),
        ("1_IM-0001-4001.dcm.png", ("1", "1_IM-0001-4001")),
        ("CXR1024_IM-0019-1001", ("1024", "1024_IM-0019-1001")),
        ("CXR10_11_IM-0002-0001-0001.png", None),
        ("lateral.png", None),
    ],
)
def test_an_image_has_one_name_in_every_copy(name, key):
    assert image_key(name) == key


def test_openi(tmp_path):
    openi(tmp_path, 3)
    read = collect(tmp_path)
    one = read.found["1_IM-0001-4001"]
    assert (one.patient_id, one.study_id, one.view, one.order) == ("1", "1", "FRONTAL", 0)
    assert one.findings_text == one.impression_text == ILL and read.found["2_IM-0002-3001"].findings_text == WELL
    assert read.found["1_IM-0001-3001"].view == "LATERAL" and len(read.found) == 6 and not read.tally.left_out
    assert one.split == read.found["1_IM-0001-3001"].split and not one.labels


def test_kaggle(tmp_path):
    """The same studies; an impression that is missing leaves the findings."""
    openi(tmp_path / "xml", 4)
    openi(tmp_path / "csv", 4, kaggle=True)
    told = {i: (s.view, s.findings_text, s.split) for i, s in collect(tmp_path / "csv").found.items()}
    assert told == {i: (s.view, s.findings_text, s.split) for i, s in collect(tmp_path / "xml").found.items()}
    assert collect(tmp_path / "csv").found["1_IM-0001-4001"].impression_text == ""


def test_an_archive_of_reports_and_dicom_files(tmp_path):
    openi(tmp_path, 2)
    with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(tmp_path / "ecgen-radiology", "ecgen-radiology")
    wanted = collect(tmp_path).found
    assert collect(tmp_path, reports=tmp_path / "NLMCXR_reports.tgz").found == wanted
    (tmp_path / "broken.tgz").write_bytes((tmp_path / "NLMCXR_reports.tgz").read_bytes()[:300])
    with pytest.raises(UserError, match="broken.tgz is not a readable archive"):
        collect(tmp_path, reports=tmp_path / "broken.tgz")
    for path in (tmp_path / "ecgen-radiology").iterdir():
        path.unlink()
    for path in list((tmp_path / "NLMCXR_png").iterdir()):
        dicom(tmp_path / "NLMCXR_dcm" / "1" / f"{path.stem.removeprefix('CXR')}.dcm", 1)
        path.unlink()
    found = collect(tmp_path).found
    assert list(found) == list(wanted) and found["1_IM-0001-4001"].image_path.endswith("1/1_1_IM-0001-4001.dcm")


def test_parts_are_counted(tmp_path):
    openi(tmp_path, 3)
    (tmp_path / "ecgen-radiology" / "3.xml").unlink()
    (tmp_path / "NLMCXR_png" / "CXR2_2_IM-0002-3001.png").unlink()
    write(tmp_path / "ecgen-radiology" / "9.xml", openi_xml(9, "x", "y", []))
    picture(tmp_path / "copy" / "CXR1_1_IM-0001-4001.png", 1)
    picture(tmp_path / "extra.png", 2)
    read = collect(tmp_path)
    assert read.tally.left_out == {
        "image file missing": 1,
        "report without an image": 1,
        "image repeated": 1,
        "file of another name": 1,
    }
    assert read.tally.noted["image whose report is missing"] == 2 and read.found["3_IM-0003-4001"].findings_text == ""


def test_without_projections_views_are_unknown(tmp_path):
    openi(tmp_path, 1)
    (tmp_path / "indiana_projections.csv").unlink()
    read = collect(tmp_path)
    assert {s.view for s in read.found.values()} == {""} and read.tally.noted["view unknown"] == 2
    settings = build_settings(
        SourceSettings, {"kind": "openi", "openi": {"folder": tmp_path}, "cohort": {"views": ["frontal"]}}
    )
    with pytest.raises(
        UserError, match="no study passes source.cohort; left out: view unknown: 2 .no indiana_projections.csv in"
    ):
        read_studies(read, settings, tmp_path, 8)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="(?s)gone does not exist.*openi.nlm"):
        collect(tmp_path / "gone")
    picture(tmp_path / "CXR1_1_IM-0001-4001.png", 1)
    with pytest.raises(UserError, match="holds no reports: looked for NLMCXR_reports.tgz, XML files named as 1.xml"):
        collect(tmp_path)
    write(tmp_path / "7.xml", openi_xml(7, "x", "y", []))
    with pytest.raises(UserError, match="none of its 1 reports is of an image .* e.g. report 7 and image CXR1_1"):
        collect(tmp_path)
    write(tmp_path / "1.xml", "<eCitation>")
    with pytest.raises(UserError, match="1.xml is not valid XML"):
        collect(tmp_path)
    write(tmp_path / "1.xml", openi_xml(1, "x", "y", []))
    write(tmp_path / "indiana_projections.csv", "uid,filename,projection\n8,8_IM-0001-1.dcm.png,Frontal\n")
    with pytest.raises(UserError, match="no row of .*indiana_projections.csv is of an image .* e.g. 8_IM-0001-1"):
        collect(tmp_path)
