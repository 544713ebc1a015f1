"""Whole tiny runs from each published layout to a results page, with the toy LLM of `test_toy_runs.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import build_model, build_tokenizer
from test_toy_runs import RECIPE
from trees import Mimic, chexpert_plus, dicom, dicom_folder, openi, write

from llmcxr.cli import main


@pytest.fixture
def toy(tmp_path, capsys):
    """Run the recipe of the toys on another source; what the run left and what it said."""
    build_model("llama", 340, True, max_position_embeddings=2048).save_pretrained(tmp_path / "llm")
    build_tokenizer().save_pretrained(tmp_path / "llm")

    def run(**source: object) -> dict:
        own = {"name": "toy", "runs": str(tmp_path), "llm": str(tmp_path / "llm"), "source": source}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(yaml.safe_load(yaml.safe_dump(RECIPE)) | own))
        code = main(["run", str(tmp_path / "recipe.yaml")])
        said = capsys.readouterr()
        assert code == 0, said.err[-2000:]
        folder = tmp_path / "toy"
        assert (folder / "evaluation" / "report.html").stat().st_size > 10_000
        assert not (folder / "labels.partial.jsonl").exists()
        summary = json.loads((folder / "evaluation" / "summary.json").read_text())
        assert summary["report"]["n"] == 4
        cohort = json.loads((folder / "stage1" / "cohort.json").read_text())
        assert cohort["rules"][0]["rule"] == "all" and f"stage1: {cohort['rules'][-1]['rule']}" in said.out
        return json.loads((folder / "studies.json").read_text()) | {"said": said.out}

    return run


def test_mimic_cxr(toy, tmp_path):
    """A lateral film, copies across splits, and a patient whose first study has no image, are counted and said."""
    mimic = Mimic(40)
    mimic.add("side", "50414267", "10000032", view="LATERAL")
    mimic.add("first", "50000001", "10000033", day="21000101", text="Clear.")
    mimic.write(tmp_path)
    files = tmp_path / "jpg" / "files" / "p10"
    next(files.glob("p10000033/s50000001/first.jpg")).unlink()
    train, test = next(files.glob("p10000034/*/*.jpg")), next(files.glob("p10000070/*/*.jpg"))
    test.write_bytes(train.read_bytes())
    block = {"folder": str(tmp_path / "jpg"), "reports": str(tmp_path / "mimic-cxr-reports.zip")}
    left = toy(
        kind="mimic_cxr", mimic_cxr=block, cohort={"views": ["frontal"], "earliest_only": True}, copies="one_split"
    )
    assert left["left_out"] == {"image file missing": 1, "view LATERAL": 1, "not the patient's earliest study": 1}
    assert [rule["images"] for rule in left["rules"]] == [41, 40, 39, 39] and sum(left["studies"].values()) == 39
    assert left["copies"] | {"examples": 0} == {
        "groups": 1, "images": 2, "across patients": 1, "across splits": 1, "patients moved": 1, "examples": 0,
    }  # fmt: skip
    assert "the patient's earliest study: 39 images of 39 patients" in left["said"]
    assert "1 patients were moved into one" in left["said"] and left["views"] == {"PA": 39}


def test_openi(toy, tmp_path):
    openi(tmp_path / "iu", 60)
    left = toy(kind="openi", openi={"folder": str(tmp_path / "iu")}, cohort={"views": ["frontal"]})
    assert left["rules"][1] == {"rule": "views AP, FRONTAL, PA", "images": 60, "studies": 60, "patients": 60}
    assert left["left_out"] == {"view LATERAL": 60} and left["studies"]["test"] >= 4


def test_chexpert_plus(toy, tmp_path):
    chexpert_plus(tmp_path / "plus", 40)
    left = toy(kind="chexpert", chexpert={"folder": str(tmp_path / "plus")})
    assert left["studies"]["test"] == 10 and not left["left_out"] and left["copies"]["groups"] == 0


def test_a_folder_of_dicom_files(toy, tmp_path):
    dicom_folder(tmp_path, 40)
    dicom(tmp_path / "export" / "ct", 99, Modality="CT")
    write(tmp_path / "export" / "readme.txt", "from the archive")
    block = {"folder": str(tmp_path / "export"), "reports": str(tmp_path / "reports.csv")}
    left = toy(
        kind="dicom_folder",
        dicom_folder=block | {"columns": {"study": "accession", "report": "report", "split": "use"}},
    )
    assert left["left_out"] == {"modality CT": 1, "not a DICOM file": 1} and left["studies"]["train"] == 24
    assert Path(left["examples"]["modality CT"][0]).name == "ct"


def test_labels_alone_and_no_labels_from_one_folder(toy, tmp_path):
    """Without published labels reports are labelled; the run is the same kind of run."""
    Mimic(40).write(tmp_path)
    block = {"folder": str(tmp_path / "jpg"), "reports": str(tmp_path / "mimic-cxr-reports.zip"), "labels": "none"}
    left = toy(kind="mimic_cxr", mimic_cxr=block)
    assert left["studies"] == {"train": 24, "validate": 6, "test": 10} and not left["left_out"]
