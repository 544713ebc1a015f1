"""The models that come with the package: whole, small, found by name, and able to see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from llmcxr.foundation.artifacts import write_json
from llmcxr.foundation.assets import DEFAULT_MODEL, SHIPPED_MODELS, cache_folder
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.instructions.questions import LIST_QUESTION
from llmcxr.metrics.scores import mean_auroc
from llmcxr.model.find import find_model, shipped_models
from llmcxr.model.folder import load_info
from llmcxr.model.outside import OutsideLimits, read_limits, write_limits
from llmcxr.model.packed import pack
from llmcxr.model.sums import check_sums
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.sources.phantom.source import PhantomSource
from llmcxr.studies.study import label_matrix
from llmcxr.tasks import report_to_cxr


def test_the_default_model_is_shipped():
    assert DEFAULT_MODEL in shipped_models()
    assert shipped_models() == sorted(p.name for p in SHIPPED_MODELS.iterdir())


def test_they_are_what_was_packed_and_small():
    for name in shipped_models():
        check_sums(SHIPPED_MODELS / name)
        assert "For research only" in (SHIPPED_MODELS / name / "README.md").read_text(encoding="utf-8")
    assert sum(p.stat().st_size for p in SHIPPED_MODELS.rglob("*")) < 60e6


def test_a_shipped_name_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / "phantom").mkdir()
    (tmp_path / "phantom" / "llmcxr.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_model("phantom").is_relative_to(cache_folder())
    assert find_model("./phantom") == Path("phantom")


def test_the_default_model_reads_patients_it_has_never_seen(tmp_path):
    settings = PhantomSettings(train=0, validate=0, test=80, seed=7)
    studies = PhantomSource(settings).studies(tmp_path, 128)
    model = LlmCxr.from_pretrained(device="cpu")
    codes = model.encode([tmp_path / study.image_path for study in studies])
    p_yes = np.stack([model.presence_probabilities(row, model.info.findings) for row in codes])
    result = mean_auroc(label_matrix(studies, model.info.findings), p_yes)
    assert np.isfinite(result.per_finding).sum() >= 8 and result.mean > 0.75
    # Of several reports the model keeps the one from which it would read what it named on the image.
    found = model.answers(codes[:12], [LIST_QUESTION] * 12)
    told = [
        model.asker.log_likelihoods([report_to_cxr.TASK.list_prompt(text) for text in texts], found)
        for texts in (model.reports(codes[:12], candidates=1), model.reports(codes[:12], candidates=3))
    ]
    assert (told[1] >= told[0] - 0.05).all() and told[1].sum() > told[0].sum()


def test_what_is_usual_of_unseen_images_goes_with_a_packed_model(tmp_path):
    run, limits = tmp_path / "run", OutsideLimits(100, (-3.0, 4.0), (0.1, 0.5), tuple(map(float, range(101))))
    for folder in ("image_tokenizer", "judge", "model", "stage1"):
        (run / folder).mkdir(parents=True)
        write_json(run / folder / "config.json", {})
        save_file({"weight": torch.zeros(2, 2)}, run / folder / "model.safetensors")
    save_file({"layer.lora_A.default.weight": torch.zeros(2, 4)}, run / "stage1" / "weights.safetensors")
    write_json(run / "model" / "llmcxr.json", dataclasses.asdict(load_info(SHIPPED_MODELS / "phantom")))
    pack(run, "stage1", "lora", tmp_path / "without", "a card")
    write_limits(run / "model", limits)
    pack(run, "stage1", "lora", tmp_path / "with", "a card")
    for name, own in (("without", None), ("with", limits)):
        check_sums(tmp_path / name)
        assert read_limits(tmp_path / name) == own
