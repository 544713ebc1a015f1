"""The models that come with the package: whole, small, found by name, and able to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llmcxr
from llmcxr.evaluation.scores import mean_auroc
from llmcxr.generation.llm_cxr import LlmCxr
from llmcxr.instructions.vqa import presence_question
from llmcxr.sources.phantom.source import PhantomSettings, collect
from llmcxr.studies.study import label_matrix
from llmcxr.tuning.packed import check_sums, find_model, shipped_models

FOLDER = Path(llmcxr.__file__).parent / "models"


def test_the_default_model_is_shipped():
    assert "phantom" in shipped_models() == sorted(p.name for p in FOLDER.iterdir())


@pytest.mark.parametrize("name", shipped_models())
def test_it_is_what_was_packed_and_small(name):
    check_sums(FOLDER / name)
    assert sum(p.stat().st_size for p in (FOLDER / name).rglob("*")) < 60e6
    assert "For research only" in (FOLDER / name / "README.md").read_text(encoding="utf-8")


def test_a_folder_without_a_model_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "phantom").mkdir()
    shipped = find_model("phantom")
    monkeypatch.chdir(tmp_path)
    assert find_model("phantom") == shipped
    (tmp_path / "phantom" / "llmcxr.json").write_text("{}")
    assert find_model("phantom") == Path("phantom")


def test_the_default_model_reads_patients_it_has_never_seen(tmp_path):
    settings = PhantomSettings(train=0, validate=0, test=48, seed=7, workers=1)
    studies = collect(settings, tmp_path).studies
    model = LlmCxr.from_pretrained(device="cpu")
    codes = model.encode([tmp_path / study.image_path for study in studies])
    questions = [presence_question(name) for name in model.info.findings]
    p_yes = np.stack([model.yes_probabilities(row, questions) for row in codes])
    assert mean_auroc(label_matrix(studies, model.info.findings), p_yes).mean > 0.75
