"""A folder of DICOM files as an archive exports it: grouped and ordered by tags, radiographs alone, reports joined by
any id."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sequence import Sequence
from trees import ILL, WELL, dicom, dicom_folder, write

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.sources.dicom_folder import DicomFolderSettings, DicomFolderSource, read_header

COLUMNS = {"study": "accession", "report": "report", "split": "use"}


def collect(root: Path, **changes: object) -> DicomFolderSource:
    read = DicomFolderSource(build_settings(DicomFolderSettings, {"folder": root / "export"} | changes), 0)
    read.check()
    found = read.studies(Path("unused"), 8)
    read.found = {Path(s.image_path).name: s for s in found}  # type: ignore[attr-defined]
    return read


def test_tags_say_what_belongs_together(tmp_path):
    """File names and folders say nothing; the earlier study lies last, and a time may lack its seconds."""
    export = tmp_path / "export"
    common = {"PatientID": "p1", "StudyDate": "20190402"}
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "R-10206", "SRT", "antero-posterior"
    uid = dicom(export / "a" / "1", 1, **common, StudyTime="0930", ViewPosition="PA")
    dicom(
        export / "b" / "2.dcm",
        2,
        **common,
        StudyInstanceUID="1.2.3.2",
        StudyTime="0930",
        SeriesDescription="CHEST LATERAL",
    )
    dicom(export / "c" / "3.dcm", 3, **common, StudyTime="081500.25", ViewCodeSequence=Sequence([code]))
    dicom(export / "4.dcm", 4, PatientID=None, SeriesDescription="CHEST PA AND LAT")
    write(export / "notes.txt", "not DICOM")
    read = collect(tmp_path)
    found = read.found
    assert found["1"].image_id == uid and found["1"].study_id == found["2.dcm"].study_id == "1.2.3.2"
    assert [found[n].order for n in ("1", "2.dcm", "3.dcm", "4.dcm")] == [1, 1, 0, 0]
    assert [found[n].view for n in ("1", "2.dcm", "3.dcm", "4.dcm")] == ["PA", "LATERAL", "AP", ""]
    assert found["4.dcm"].patient_id == found["4.dcm"].study_id and found["1"].patient_id == "p1"
    assert read.tally.left_out == {"not a DICOM file": 1} and read.tally.noted["view unknown"] == 1


def test_only_radiographs(tmp_path):
    export = tmp_path / "export"
    for k, modality in enumerate(["CR", "DX", "RG", "CT", "SEG", "SR", "CT"]):
        dicom(export / f"{k}.dcm", k, Modality=modality)
    dicom(export / "raw.dcm", 1, Modality="DX", PresentationIntentType="FOR PROCESSING")  # of study 1.2.3.2
    dicom(export / "only-raw.dcm", 20, Modality="DX", PresentationIntentType="FOR PROCESSING")
    dicom(export / "no-image.dcm", 22, Rows=None, Modality=None)
    dicom(export / "knee.dcm", 21, BodyPartExamined="KNEE")
    (export / "copy.dcm").write_bytes((export / "0.dcm").read_bytes())
    (export / "short.dcm").write_bytes((export / "0.dcm").read_bytes()[:200])
    read = collect(tmp_path)
    assert set(read.found) == {"0.dcm", "1.dcm", "2.dcm", "knee.dcm", "only-raw.dcm"}
    left = read.tally.left_out
    assert left["modality CT"] == 2 and left["modality SEG"] == left["modality SR"] == 1
    assert left["raw detector image (FOR PROCESSING) of a study that has processed ones"] == 1
    assert left["image repeated (its SOPInstanceUID came before)"] == 1 and sum(left.values()) == 8
    assert left["DICOM object without an image"] == 1
    assert read.tally.noted["image of another part of the body by its tag: KNEE"] == 1


def test_reports_from_a_table(tmp_path):
    dicom_folder(tmp_path, 6)
    read = collect(tmp_path, reports=tmp_path / "reports.csv", columns=COLUMNS)
    one = read.found["00000001"]
    assert (one.findings_text, one.impression_text, one.split) == (ILL, ILL, "train")
    assert [s.split for s in read.found.values()].count("test") == 1
    bare = collect(tmp_path).found["00000001"]
    assert (bare.findings_text, bare.impression_text, bare.image_id) == ("", "", one.image_id)


@pytest.mark.parametrize("by", ["accession", "study", "image", "file", "float"])
def test_they_are_joined_by_any_id(tmp_path, by):
    uid = dicom(tmp_path / "export" / "x" / "7.dcm", 0, AccessionNumber="4711")
    key = {"accession": "4711", "study": "1.2.3.1", "image": uid, "file": "7.dcm", "float": "4711.0"}[by]
    write(tmp_path / "r.csv", f"id,text\nnobody,x\n{key},FINDINGS: Clear.\n")
    read = collect(tmp_path, reports=tmp_path / "r.csv", columns={"study": "id", "report": "text"})
    assert read.found["7.dcm"].findings_text == "Clear."


def test_labels_from_a_table(tmp_path):
    dicom(tmp_path / "export" / "7.dcm", 0)
    dicom(tmp_path / "export" / "8.dcm", 1)
    write(tmp_path / "r.csv", "id,Mass,No Finding\n7.dcm,1,0\n")
    read = collect(tmp_path, reports=tmp_path / "r.csv", columns={"study": "id"}, label_columns=["Mass", "No Finding"])
    assert [s.labels for s in read.found.values()] == [{"Mass": 1}, {}] and read.findings == ["Mass"]
    assert read.tally.noted["image without a row in the table of reports"] == 1


def test_a_placeholder_for_all_patients_is_said(tmp_path):
    for k in range(20):
        dicom(tmp_path / "export" / f"{k}.dcm", k, PatientID="ANONYMOUS")
    noted = collect(tmp_path).tally.noted
    assert noted["one patient has most of the studies (a placeholder? they are all in one split)"] == 1


def test_mistakes_are_named(tmp_path):
    dicom_folder(tmp_path, 2)
    reports = {"reports": tmp_path / "reports.csv"}
    with pytest.raises(UserError, match="no column 'acession', nearest: accession"):
        collect(tmp_path, **reports, columns={"study": "acession"})
    with pytest.raises(UserError, match="no row of .*reports.csv is of a file .*'train'.* AccessionNumber '4700'"):
        collect(tmp_path, **reports, columns={"study": "use", "report": "report"})
    with pytest.raises(UserError, match="columns.study: is required where there are reports"):
        collect(tmp_path, **reports)
    with pytest.raises(UserError, match="the split 'some' is not one of"):
        write(tmp_path / "s.csv", "id,use\n4700,some\n")
        collect(tmp_path, reports=tmp_path / "s.csv", columns={"study": "id", "split": "use"})
    with pytest.raises(UserError, match="gone does not exist. Set source.dicom_folder.folder"):
        collect(tmp_path, folder=tmp_path / "gone")
    with pytest.raises(UserError, match=r"no radiograph is in .*left out: modality CT: 1"):
        dicom(tmp_path / "ct" / "1.dcm", 0, Modality="CT")
        collect(tmp_path, folder=tmp_path / "ct")


def test_the_fingerprint_knows_files_and_reports(tmp_path):
    dicom_folder(tmp_path, 2)
    settings = build_settings(
        DicomFolderSettings, {"folder": tmp_path / "export", "reports": tmp_path / "reports.csv", "columns": COLUMNS}
    )
    before = DicomFolderSource(settings, 0).fingerprint()
    (tmp_path / "reports.csv").write_text((tmp_path / "reports.csv").read_text().replace(WELL, "Clear."))
    after = DicomFolderSource(settings, 0).fingerprint()
    dicom(tmp_path / "export" / "more.dcm", 9)
    assert len({str(f) for f in (before, after, DicomFolderSource(settings, 0).fingerprint())}) == 3


SAMPLE: list[bytes] = []


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_damaged_header_is_a_reason(at, noise, cut):
    """Bytes changed or cut off anywhere: tags, or a sentence; never a crash."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dcm"
        if not SAMPLE:
            dicom(path, 1, StudyDate="20190402")
            SAMPLE.append(path.read_bytes())
        whole = SAMPLE[0]
        at = min(at, len(whole))
        path.write_bytes(whole[:at] if cut else whole[:at] + noise + whole[at + len(noise) :])
        header = read_header(path)
        assert isinstance(header, str) or all(isinstance(value, str) for value in header.values())
