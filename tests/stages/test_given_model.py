"""A run that measures a finished model: what is learned of that model later makes nothing anew but the scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from image_files import film, picture_file
from toy_folder import write_toy_run

from llmcxr.foundation.settings import build_settings
from llmcxr.image_tokens.codes import encode_images
from llmcxr.model.calibration import Calibration, FindingMap, FittedOn, save_calibration
from llmcxr.model.folder import LEARNED_LATER
from llmcxr.model.outside import OutsideLimits, write_limits
from llmcxr.pipeline import Run
from llmcxr.recipe import Recipe


def test_a_calibration_leaves_codes_and_answers_as_they_are(tmp_path, monkeypatch):
    model = write_toy_run(tmp_path / "toy") / "model"
    picture_file(tmp_path / "0.png", film(64))
    rows = [{"image": "0.png", "split": "test"}]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"path": str(tmp_path / "table.jsonl"), "columns": {"image": "image", "split": "split"}}
    plain = {"runs": str(tmp_path), "device": "cpu", "precision": "float32", "model": str(model)}
    recipe = build_settings(Recipe, plain | {"source": {"kind": "table", "table": table}})

    asked, scored = list[Path](), list[bool]()

    def predict(cases, load, folder, processes):
        if not (folder / "predictions.parquet").exists():
            asked.append(folder)
            folder.mkdir()
            (folder / "predictions.parquet").touch()

    def rescore(context):
        scored.append(True)

    encoded = list[int]()
    monkeypatch.setattr("llmcxr.stages.evaluation.predict", predict)
    monkeypatch.setattr("llmcxr.stages.evaluation.rescore", rescore)
    monkeypatch.setattr("llmcxr.stages.image_tokens.encode_images", lambda *a: encoded.append(1) or encode_images(*a))

    def run() -> tuple[int, int, int]:
        for counted in (asked, scored, encoded):
            counted.clear()
        Run(recipe).run()
        return len(encoded), len(asked), len(scored)

    assert run() == (1, 1, 1) and run() == (0, 0, 0)
    usual = OutsideLimits(50, (-3.0, 2.0), (0.1, 0.1), tuple(map(float, np.arange(101))))
    write_limits(model, usual)
    assert run() == (0, 0, 0), "the model warns, and answers as before"
    maps = {name: FindingMap(1.0, 0.0, 5, 50) for name in ("mass", "nodule")}
    save_calibration(model, Calibration(maps, "none", {"none": 0.3}, FittedOn("table", "validate", 50, 48, "abc")))
    assert run() == (0, 0, 1) and run() == (0, 0, 0), "scores alone are made by it"
    assert {p.name for p in model.glob("*.json")} > set(LEARNED_LATER)
    (model / "added_tokens.json").write_text("{}")  # what loaders read is the model
    assert run() == (1, 1, 1)
