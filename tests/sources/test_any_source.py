"""What holds of every source: where its paths begin, and files of names and kinds that nobody expects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trees import ILL, Mimic, chexpert_plus, dicom_folder, lines, openi, picture, write

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import SettingsError, build_settings
from llmcxr.sources.base import FilesByName, Tally
from llmcxr.sources.registry import SourceSettings, build_source
from llmcxr.studies.study import Study, read_manifest, write_manifest


def own_table(root: Path) -> None:
    for k in range(3):
        picture(root / "films" / f"{k}.png", k)
    write(root / "films" / "t.csv", lines("file,report", [[f"{k}.png", ILL] for k in range(3)]))


BLOCKS = {
    "mimic_cxr": {"folder": "jpg", "reports": "mimic-cxr-reports.zip"},
    "openi": {"folder": "iu"},
    "chexpert": {"folder": "plus"},
    "dicom_folder": {"folder": "export"},
    "table": {"path": "films/t.csv", "columns": {"image": "file", "report": "report"}},
}


def read(kind: str, block: dict[str, object]) -> tuple[Tally, list[Study]]:
    source = build_source(build_settings(SourceSettings, {"kind": kind, kind: block}), 0)
    return source.tally, list(source.studies(Path("run"), 32))


@pytest.mark.parametrize("kind", BLOCKS)
def test_paths_begin_where_llmcxr_is_started(kind, tmp_path, monkeypatch):
    """Those of a manifest begin in the run's folder, so they are absolute."""
    make = {"mimic_cxr": Mimic(4).write, "table": own_table}
    more = {"openi": lambda r: openi(r / "iu", 4), "chexpert": lambda r: chexpert_plus(r / "plus", 4)}
    (make | more | {"dicom_folder": lambda r: dicom_folder(r, 4)})[kind](tmp_path)
    monkeypatch.chdir(tmp_path)
    _, studies = read(kind, BLOCKS[kind])
    assert len(studies) >= 3
    assert all(Path(s.image_path).is_absolute() and Path(s.image_path).is_file() for s in studies)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a/" * 3000, "a\0b.png", "..", "/", "pipe"])
def test_names_that_are_of_no_file(name, tmp_path):
    picture(tmp_path / "sub" / "a.png", 1)
    os.mkfifo(tmp_path / "sub" / "pipe.png")
    files = FilesByName(tmp_path)
    assert files.find(name) is None and files.find("a") == tmp_path / "sub" / "a.png"


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    """No manifest can hold its path: what lies in it is counted, and the rest is read."""
    own_table(tmp_path)
    odd = tmp_path / "films" / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (tmp_path / "films" / "1.png").rename(odd / "1.png")
    tally, studies = read("table", BLOCKS["table"] | {"path": str(tmp_path / "films" / "t.csv")})
    assert tally.left_out == {"image file missing": 1}
    dicom_folder(tmp_path, 3)
    (tmp_path / "export" / "A1").rename(tmp_path / "export" / os.fsdecode(b"A\xff"))
    os.mkfifo(tmp_path / "export" / "pipe.dcm")
    tally, found = read("dicom_folder", {"folder": str(tmp_path / "export")})
    assert tally.left_out == {"file or folder whose name is not UTF-8": 1, "not a file": 1}
    write_manifest(tmp_path / "m.parquet", [*studies, *found])
    assert len(read_manifest(tmp_path / "m.parquet")) == 4
    tally.leave_out("x", os.fsdecode(b"caf\xe9"))
    assert tally.examples["x"] == ["caf\\udce9"], "examples are written as text"


def test_several_sources_are_one_after_another(tmp_path):
    """With the studies, the counts and the splits of each alone."""
    own_table(tmp_path)
    dicom_folder(tmp_path, 2)
    table = BLOCKS["table"] | {"path": str(tmp_path / "films" / "t.csv")}
    blocks = {"table": table, "dicom_folder": {"folder": str(tmp_path / "export")}}
    alone = {kind: read(kind, block) for kind, block in blocks.items()}
    source = build_source(build_settings(SourceSettings, {"kind": "table+dicom_folder", **blocks}), 0)
    both = list(source.studies(tmp_path, 32))
    assert both == [study for _, studies in alone.values() for study in studies]
    assert source.tally.noted == {
        f"{kind}: {k}": n for kind, (tally, _) in alone.items() for k, n in tally.noted.items()
    }
    assert source.fingerprint().keys() == blocks.keys() and source.on_disk


def test_images_to_come_are_known_where_all_sources_know_theirs(tmp_path):
    """Phantoms with a table were planned as 377,110 images, though both tell how many they have."""
    own_table(tmp_path)
    blocks = {"phantom": {"train": 5, "validate": 2, "test": 3}, "table": BLOCKS["table"]}

    def source(path: str):
        table = blocks | {"table": blocks["table"] | {"path": str(tmp_path / path)}}
        return build_source(build_settings(SourceSettings, {"kind": "phantom+table", **table}), 0)

    assert source("films/t.csv").assumed_images == 10 + 3 and source("none.csv").assumed_images is None


def test_a_patient_of_two_sources_is_named(tmp_path):
    picture(tmp_path / "a.png", 1)
    write(tmp_path / "t.csv", lines("file,patient,report", [["a.png", "7", ILL]]))
    table = {"path": str(tmp_path / "t.csv"), "columns": {"image": "file", "patient": "patient", "report": "report"}}
    dicom_folder(tmp_path, 2)
    settings = {"kind": "table+dicom_folder", "table": table, "dicom_folder": {"folder": str(tmp_path / "export")}}
    known = build_source(build_settings(SourceSettings, settings | {"kind": "dicom_folder"}), 0).studies(tmp_path, 32)
    write(tmp_path / "t.csv", lines("file,patient,report", [["a.png", known[0].patient_id, ILL]]))
    with pytest.raises(UserError, match=f"the patient {known[0].patient_id} is in table and in dicom_folder"):
        build_source(build_settings(SourceSettings, settings), 0).studies(tmp_path, 32)


@pytest.mark.parametrize("kind", ["table+", "table+table", "+", "table+nothing"])
def test_joined_kinds_that_are_none(kind):
    with pytest.raises(SettingsError, match="kind"):
        build_settings(SourceSettings, {"kind": kind, "table": BLOCKS["table"]})
