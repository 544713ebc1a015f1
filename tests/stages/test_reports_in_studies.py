"""Reports in the studies stage: labels of the whole text, references by the policy, and a reason for each that is not
used."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from llmcxr.cli import main
from llmcxr.studies.study import read_manifest

REPORTS = {
    "a": "FINDINGS: Large left pleural effusion is unchanged. The heart is normal in size.\n \n IMPRESSION: New effusion.",
    "b": "IMPRESSION: No pleural effusion.",
    "c": "COMPARISON: ___.\n \n Small effusion is seen. No pneumothorax.",
    "d": "Kein Pneumothorax.",
    "e": "N/A",
    "f": "INDICATION: Cough.",
}


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_reports_become_texts_labels_and_reasons(tmp_path, capsys, policy):
    with open(tmp_path / "t.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "report", "patient"])
        for name, report in REPORTS.items():
            Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / f"{name}.png")
            writer.writerow([f"{name}.png", report, name])
    table = {"path": str(tmp_path / "t.csv"), "columns": {"image": "image", "report": "report", "patient": "patient"}}
    recipe = {"source": {"kind": "table", "table": table}, "runs": str(tmp_path), "name": "run", "device": "cpu"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"prior_references": policy}))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--stage", "studies"]) == 0
    said = capsys.readouterr().out
    studies = {study.patient_id: study for study in read_manifest(tmp_path / "run" / "manifest.parquet")}
    assert [p for p, s in studies.items() if s.findings_text or s.impression_text] == ["a", "b", "c"]
    assert studies["a"].labels["pleural effusion"] == 1  # also where the sentence that says so is dropped
    assert studies["a"].findings_text.startswith("Large left" if policy == "keep" else "The heart is normal")
    assert studies["a"].impression_text == ("New effusion." if policy == "keep" else "")
    assert studies["c"].impression_text == "Small effusion is seen. No pneumothorax."
    kept = json.loads((tmp_path / "run" / "studies.json").read_text())
    reasons = ("report: not in English", "image without a report", "report: nothing that describes the image")
    assert kept["left_out"] == {} and [kept["noted"][reason] for reason in reasons] == [1, 1, 1]
    assert kept["examples"][reasons[0]] == ["d: Kein Pneumothorax."]
    assert (kept["prior_references"]["sentences"], kept["prior_references"]["reports"]) == (2, 1)
    assert "2 sentences of 1 reports refer to earlier studies" in said
