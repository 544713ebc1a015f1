"""Data as it comes: runs that could not finish before, each from a small table to a results page, with a toy LLM.

A table of 40 invented patients is changed in one way a test; the run must end, and the page must say what cannot be had.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable

import numpy as np
import pytest
import yaml
from conftest import build_model, build_tokenizer
from PIL import Image

from llmcxr.cli import main

Row = dict[str, str]
EFFUSION = "FINDINGS: Small left pleural effusion. The heart is enlarged. IMPRESSION: Effusion, cardiomegaly."
NORMAL = "FINDINGS: No pleural effusion. The heart is normal in size. IMPRESSION: Normal chest."
CASES = dict.fromkeys(("reconstructions", "reports", "questions", "probabilities", "drawings"), 4)
RECIPE = {
    "device": "cpu",
    "precision": "float32",
    "source": {
        "kind": "table",
        "table": {
            "columns": {"image": "file", "report": "report", "patient": "patient", "split": "split", "view": "view"},
            "label_columns": ["Cardiomegaly", "Pleural_Effusion"],
        },
    },
    "clinical_features": {"resolution": 32, "training": {"steps": 1, "batch_size": 4}},
    "image_tokenizer": {
        "architecture": {"kind": "mixer", "image_size": 32, "patch": 16, "width": 16, "codebook_size": 8}
        | {"code_dim": 4, "clinical_input": True},
        "steps": 2,
        "batch_size": 4,
        "reading_weight": 0.01,
    },
    "tuning": {
        "lora_rank": 2,
        "template": "chat",
        "system_prompt": "",
        "findings_first": ["cxr_to_report", "report_to_cxr"],
        "max_tokens": 256,
        "tokens_per_batch": 512,
        "alignment": {"steps": 1},
        "logging": "none",
        "stages": [{"name": "stage1", "examples": 8}],
    },
    "evaluation": {"judge_steps": 1, "cases": CASES},
}


def rows() -> list[Row]:
    """Every second patient has an effusion and a large heart; labels are in CheXpert's spelling."""
    result = []
    for k in range(40):
        ill = k % 2
        row = {"file": f"{k:02d}.png", "patient": f"p{k}", "view": "PA", "report": EFFUSION if ill else NORMAL}
        row["split"] = "train" if k < 24 else "validate" if k < 30 else "test"
        result.append(row | {"Cardiomegaly": str(ill), "Pleural_Effusion": str(ill)})
    return result


@pytest.fixture
def toy(tmp_path, capsys):
    """Write the changed table and images, run, and return what the run left and what it said."""
    build_model("llama", 340, True, max_position_embeddings=2048).save_pretrained(tmp_path / "llm")
    build_tokenizer().save_pretrained(tmp_path / "llm")

    def run(change: Callable[[list[Row]], list[Row]] = lambda r: r, **settings: object) -> dict:
        table = change(rows())
        random = np.random.default_rng(0)
        for k, row in enumerate(table):
            pixels = random.integers(0, 255, (40, 36)).astype(np.uint8)
            pixels[20:] //= 1 + k % 2
            Image.fromarray(pixels).save(tmp_path / row["file"])
        for name in settings.pop("broken", ()):  # type: ignore[attr-defined]
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
        with open(tmp_path / "studies.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        recipe = yaml.safe_load(yaml.safe_dump(RECIPE)) | {
            "name": "toy",
            "runs": str(tmp_path),
            "llm": str(tmp_path / "llm"),
        }
        recipe["source"]["table"] |= {"path": str(tmp_path / "studies.csv")} | settings.pop("table", {})  # type: ignore[operator]
        recipe |= settings
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code = main(["run", str(tmp_path / "recipe.yaml")])
        said = capsys.readouterr()
        assert code == 0, said.err[-2000:]
        folder = tmp_path / "toy"
        return {
            "summary": json.loads((folder / "evaluation" / "summary.json").read_text()),
            "studies": json.loads((folder / "studies.json").read_text()),
            "page": (folder / "evaluation" / "report.html").read_text(encoding="utf-8"),
            "said": said.out,
            "model": json.loads((folder / "model" / "llmcxr.json").read_text()),
        }

    return run


def test_one_broken_image(toy):
    left = toy(broken=["05.png"])
    assert left["studies"]["left_out"] == {"unreadable image": 1}
    assert left["studies"]["studies"] == {"train": 23, "validate": 6, "test": 10}
    assert left["summary"]["report"]["n"] == 4 and left["model"]["findings"] == ["Cardiomegaly", "Pleural_Effusion"]


def test_reports_without_labels_are_labelled(toy):
    left = toy(table={"label_columns": []})
    assert {"cardiomegaly", "pleural effusion"} <= set(left["model"]["findings"])
    assert left["summary"]["report"]["n"] == 4 and "vqa" in left["summary"]


def test_reports_that_nobody_can_label(toy):
    left = toy(table={"label_columns": []}, labeller="none")
    assert "no finding is known both present and absent" in left["said"]
    assert left["model"]["findings"] == [] and left["model"]["findings_first"] == []
    assert left["summary"]["not_measured"] and "no finding" in left["page"]
    assert left["summary"]["image_tokenizer"]["l1"] > 0 and left["summary"]["language"]["perplexity_ratio"] > 0


def test_labels_without_reports(toy):
    columns = {k: v for k, v in RECIPE["source"]["table"]["columns"].items() if k != "report"}
    left = toy(table={"columns": columns})
    assert "there are no reports" in left["said"] and not left["summary"]["report"]
    assert "no test image has a report text" in left["summary"]["not_measured"]["report.micro_f1"]
    assert left["summary"]["vqa"]["n"] == 4


def test_labels_with_odd_names(toy):
    def change(table: list[Row]) -> list[Row]:
        names = ["COVID-19, ARDS", "No Finding", "Pleural_Effusion"]
        return [row | {"finding": names[k % 3]} for k, row in enumerate(table)]

    left = toy(
        change, table={"label_columns": [], "columns": RECIPE["source"]["table"]["columns"] | {"label": "finding"}}
    )
    assert set(left["model"]["findings"]) == {"COVID-19", "ARDS", "Pleural_Effusion"}
    assert "the labeller does not know ARDS, COVID-19" in left["said"].replace("COVID-19, ARDS", "ARDS, COVID-19")
    assert "No Finding" not in left["page"].replace("COVID-19, ARDS", "")


def test_one_class_only(toy):
    left = toy(lambda table: [row | {"Cardiomegaly": "1", "Pleural_Effusion": "1"} for row in table])
    assert left["model"]["findings"] == [] and left["summary"]["not_measured"]


def test_no_validation_split(toy):
    left = toy(lambda table: [row | {"split": row["split"].replace("validate", "train")} for row in table])
    assert "no patient is in the split validate" in left["said"] and left["summary"]["report"]["n"] == 4


def test_lateral_images_take_no_part_where_the_stage_is_frontal(toy):
    def change(table: list[Row]) -> list[Row]:
        return [row | {"view": "LATERAL" if k % 5 == 0 else "PA"} for k, row in enumerate(table)]

    tuning = RECIPE["tuning"] | {"stages": [{"name": "stage1", "examples": 8, "cohort": {"views": ["PA", "AP"]}}]}
    evaluation = RECIPE["evaluation"] | {"cases": CASES | {"reports": 40}}
    left = toy(change, tuning=tuning, evaluation=evaluation)
    assert left["summary"]["report"]["n"] == 8, "two of ten test images are lateral"
