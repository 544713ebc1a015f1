"""The shipped recipe `real-notes` at toy size on an invented table in the COVID-19 collection's published layout: with notes and
findings, with notes alone, with findings alone. Each ends in a page that says what it was given and what cannot be had."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import yaml
from conftest import build_model, build_tokenizer
from PIL import Image
from test_results import Reader
from test_toy_runs import CASES, RECIPE

from llmcxr.cli import main
from llmcxr.instructions.questions import read_questions
from llmcxr.recipes import SHIPPED

# As published in 2020, with the comma at the end of the line.
LINE = (
    "patientid,offset,sex,age,finding,survival,intubated,intubation_present,went_icu,in_icu,needed_supplemental_O2,extubated,"
    "temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,view,modality,date,location,folder,filename,"
    "doi,url,license,clinical_notes,other_notes,"
)
HEAD = next(csv.reader([LINE]))
ILL = (
    "Man of {age} with fever. Chest radiograph on day {day}: patchy opacities in both lower lobes, no pleural effusion."
)
WELL = "Woman of {age} with cough. The lungs are clear. No pleural effusion."
LONG = "She was seen by her doctor for malaise and was given paracetamol, which did not help. " * 25


def table() -> list[dict[str, str]]:
    """40 patients of two frontal films each, and the oddities of the collection, each said where it stands."""
    rows = []
    for k in range(40):
        ill = k % 2 == 0
        for visit in range(2):
            row = dict.fromkeys(HEAD, "")
            row |= {
                "patientid": str(k),
                "age": str(30 + k),
                "view": ("PA", "AP", "AP Supine")[k % 3],
                "modality": "X-ray",
            }
            row |= {
                "finding": "COVID-19" if ill else "No Finding",
                "date": "January 22, 2020",
                "offset": str(10 - visit),
            }
            row |= {"filename": f"p{k}-{visit}.png", "license": "invented", "location": "Nowhere, Atlantis"}
            row["clinical_notes"] = (ILL if ill else WELL).format(age=30 + k, day=9 + visit)
            rows.append(row)
    for k in range(8):  # half of them have days for one of their two films
        rows[2 * k]["offset"] = ""
    rows[0]["finding"] = rows[4]["finding"] = "COVID-19, ARDS"
    rows[20]["clinical_notes"] = "Day 4: bilateral consolidations, intubated. History: Man of 54."
    rows[22]["clinical_notes"] = "RADIOGRAPHIC FINDINGS: Patchy opacities."
    rows[24]["clinical_notes"] = "Fever of 38.3\ufffdC. Patchy opacities are seen in the left lung."
    rows[26]["clinical_notes"] = LONG + "Patchy opacities are seen."
    rows[28]["clinical_notes"] = ""
    side = rows[30] | {"view": "L", "filename": "side.png"}
    slice_ = rows[31] | {"view": "Axial", "modality": "CT", "filename": "slice.png"}
    again = rows[32] | {"patientid": "77"}  # one file under two ids
    lost = rows[33] | {"filename": "lost.png"}
    twin = rows[34] | {"patientid": "78", "filename": "twin.png", "offset": ""}  # the same picture under two ids
    return [*rows, side, slice_, again, lost, twin]


@pytest.fixture
def toy(tmp_path, capsys):
    """Write the table and the images, run the recipe at toy size, and return what it left and said."""
    build_model("llama", 340, True, max_position_embeddings=4096).save_pretrained(tmp_path / "llm")
    build_tokenizer().save_pretrained(tmp_path / "llm")
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for row in table():
        pixels = random.integers(0, 255, (40, 36)).astype(np.uint8)
        pixels[20:] //= 1 + (row["finding"] != "No Finding")
        if row["filename"] not in ("lost.png", "twin.png"):
            Image.fromarray(pixels).save(tmp_path / "images" / row["filename"])
    (tmp_path / "images" / "twin.png").write_bytes((tmp_path / "images" / table()[34]["filename"]).read_bytes())
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([HEAD, *([row[name] for name in HEAD] for row in table())])

    def run(*without: str) -> dict:
        """`without`: columns that the recipe does not name."""
        recipe = yaml.safe_load(SHIPPED["real-notes"].read_text())
        block = recipe["source"]["table"]
        block |= {"path": str(tmp_path / "metadata.csv"), "images": str(tmp_path / "images")}
        for column in without:
            del block["columns"][column]
        toy = yaml.safe_load(yaml.safe_dump(RECIPE))
        for name in ("clinical_features", "image_tokenizer", "device", "precision"):
            recipe[name] = toy[name]
        recipe |= {"name": "toy", "runs": str(tmp_path), "llm": str(tmp_path / "llm")}
        recipe["evaluation"] = {"judge_steps": 1, "cases": CASES}
        recipe["tuning"] |= {"lora_rank": 2, "tokens_per_batch": 1024, "logging": "none"}
        for stage in recipe["tuning"]["stages"]:
            stage["examples"] = 8
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code = main(["run", str(tmp_path / "recipe.yaml")])
        said = capsys.readouterr()
        assert code == 0, said.err[-2000:]
        folder = tmp_path / "toy"
        reader = Reader()
        reader.feed((folder / "evaluation" / "report.html").read_text(encoding="utf-8"))
        return {
            "studies": json.loads((folder / "studies.json").read_text()),
            "summary": json.loads((folder / "evaluation" / "summary.json").read_text()),
            "text": re.sub(r"\s+", " ", reader.text),
            "said": said.out,
            "model": json.loads((folder / "model" / "llmcxr.json").read_text()),
            "questions": {q.question for q in read_questions(folder / "vqa.parquet")},
        }

    return run


DROPPED = {
    "image file missing": 1,
    "modality CT": 1,
    "image repeated, under another patient": 1,
    "view LATERAL": 1,
}


def test_notes_and_findings(toy):
    left = toy()
    studies, text = left["studies"], left["text"]
    assert studies["left_out"] == DROPPED and sum(studies["studies"].values()) == 81
    assert studies["noted"] == {
        "patient of several studies whose order is not known": 8,
        "report: lost characters (U+FFFD)": 1,
        "report: more than 300 words (a case history?)": 1,
        "image without a report": 1,
    }
    assert studies["copies"]["across patients"] == 1
    for reason in (*DROPPED, *studies["noted"], "not known which study is the patient's earliest"):
        assert reason in text, f"the page does not say: {reason}"
    assert "2 images are 1, pixel for pixel" in text and "under the same terms" in text
    assert set(left["model"]["findings"]) == {"COVID-19", "ARDS"}
    # What cannot be scored, why, and what to do about it.
    assert "the labeller does not know ARDS, COVID-19: scores of reports leave them out. Name them as it does" in text
    assert "the labeller knows none of the findings of the data" in left["summary"]["not_measured"]["report.micro_f1"]
    assert "findings not compared: the labeller knows none of the findings" in text
    assert (
        {"Is there COVID-19?"}
        <= left["questions"]
        <= {"Is there COVID-19?", "Is there ARDS?", "Is this chest radiograph normal?"}
    )
    assert "llmcxr ask" in text and "'Is there COVID-19?'" in text and "cardiomegaly" not in text.split("Try next")[1]
    assert "The test has" in text and "no number here says much" in text


def test_notes_alone(toy):
    """Findings are then those that the labeller reads in the notes."""
    left = toy("label")
    assert "opacity" in left["model"]["findings"] and "COVID-19" not in left["model"]["findings"]
    assert left["studies"]["left_out"] == DROPPED and left["summary"]["report"]["n"] >= 1
    assert "Try next" in left["text"] and "COVID-19" not in left["text"].split("Try next")[1]


def test_findings_alone(toy):
    left = toy("report")
    assert "there are no reports, so no report is learned, written or drawn from." in left["text"]
    assert left["text"].count("Not measured: no test image has a report text.") == 3  # glance, reports, drawings
    assert left["summary"]["vqa"]["n"] >= 1 and not left["summary"]["report"]
    assert "no findings and impression" not in left["text"], "without any report none is left out for lacking one"
    assert "llmcxr report" not in left["text"] and "llmcxr draw" not in left["text"] and "llmcxr ask" in left["text"]
