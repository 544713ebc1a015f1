"""The studies stage keeps how every image was read, and says what is odd before hours are spent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import dicom_file, film, picture_file

from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings
from llmcxr.recipe import Recipe
from llmcxr.stages.context import Context
from llmcxr.stages.data import studies_stage, write_page
from llmcxr.studies.image_notes import read_notes
from llmcxr.studies.pixel_store import PixelStore
from llmcxr.studies.study import read_manifest


@pytest.fixture
def table(tmp_path) -> Path:
    for i in range(4):
        picture_file(tmp_path / f"{i}.png", film(64))
    picture_file(tmp_path / "long.png", film(64, 96))
    picture_file(tmp_path / "negative.png", 255 - film(64))
    dicom_file(tmp_path / "ct.dcm", film(64).astype(np.uint16), Modality="CT")
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\x00\x60\x00" * 9)
    names = [*(f"{i}.png" for i in range(4)), "long.png", "negative.png", "ct.dcm", "broken.dcm"]
    rows = "\n".join(f"{name},No pneumothorax." for name in names)
    (tmp_path / "table.csv").write_text(f"image,report\n{rows}\n")
    return tmp_path / "table.csv"


def run(table: Path, **source: object) -> Context:
    block = {"kind": "table", "table": {"path": str(table), "columns": {"report": "report"}}, **source}
    architecture = {"kind": "mixer", "image_size": 32, "patch": 16}
    recipe = {"runs": str(table.parent), "device": "cpu", "precision": "float32", "source": block}
    context = Context(build_settings(Recipe, recipe | {"image_tokenizer": {"architecture": architecture}}))
    context.folder.mkdir(exist_ok=True)
    studies_stage(context).run()
    return context


def test_every_image_leaves_a_note(table, capsys):
    context = run(table)
    notes = {note.image_id: note for note in read_notes(context.folder / "images.parquet")}
    kept = [s.image_id for s in read_manifest(context.folder / "manifest.parquet")]
    assert len(notes) == 8 and kept == ["0", "1", "2", "3", "long", "negative"]
    counts = read_json(context.folder / "studies.json")
    assert counts["left_out"] == {"modality CT": 1, "unreadable image": 1}
    assert counts["images"]["implausible"] == {"inverted": 1} and notes["negative"].implausible == "inverted"
    said = capsys.readouterr().out
    assert "1 images look inverted" in said and "negative.png" in said and "lose over a quarter" in said


def test_geometry_and_plausibility_are_settings(table, capsys):
    context = run(table, geometry={"square": "pad"}, implausible="leave_out")
    assert [s.image_id for s in context.studies] == ["0", "1", "2", "3", "long"]
    assert read_json(context.folder / "studies.json")["left_out"]["implausible image: inverted"] == 1
    long = PixelStore.open(context.folder / "pixels.npy")[4]
    assert not long[:5].any() and not long[-5:].any() and long[8:-8].any()
    assert "left out" in capsys.readouterr().out
    before = studies_stage(context).settings
    assert studies_stage(run(table)).settings != before


@pytest.mark.parametrize("content", [{}, [], {"studies": {}, "left_out": {}}])
def test_a_summary_of_another_version_has_no_page(content, table):
    context = run(table)
    write_json(context.folder / "studies.json", content)
    with pytest.raises(UserError, match="studies.json was written by another version.*llmcxr prepare"):
        write_page(context)
