"""The ablation of clinical terms: arms that differ in what they say, one that is trained and measured, and its tables."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script
from sklearn.metrics import roc_auc_score

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.yaml_text import read_yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "evaluation"))
from toy_run import FINDINGS, toy_run  # noqa: E402

ablation = load_script("benchmarks/clinical_ablation.py")


def test_the_arms_differ_in_the_clinical_terms_alone(tmp_path):
    recipe = read_yaml(toy_run(tmp_path / "run", 4) / "recipe.yaml")
    terms = {}
    for arm in ablation.ARMS:
        own = ablation.settings_of(arm, recipe, 7)
        terms[arm] = (own.architecture.clinical_input, own.reading_weight, own.clinical_weight)
        assert own.steps == 7 and own.batch_size == 4 and own.architecture.width == 32
    assert terms == {
        "all": (True, 0.01, 0.1),
        "all but the loss": (True, 0.01, 0.0),
        "paper": (False, 0.0, 0.1),
        "paper but the loss": (False, 0.0, 0.0),
        "none": (False, 0.0, 0.0),
    }
    recipe["image_tokenizer"]["reading_weight"] = 0.0
    with pytest.raises(UserError, match="reading_weight. Set --arms"):
        ablation.settings_of("all", recipe, 7)
    recipe["image_tokenizer"]["clinical_weight"] = 0.0
    with pytest.raises(UserError, match="no clinical loss to take away"):
        ablation.settings_of("paper", recipe, 7)


def test_an_arm_is_trained_measured_and_shown(tmp_path):
    run = toy_run(tmp_path / "run")
    options = Namespace(run=run, device="cpu", judge=[str(run)], steps=2)
    results = {"arms": {}, "data": {}}
    ablation.take(results, "none/0", ablation.work(options, "none", 0, tmp_path / "work"))
    assert set(results["data"]) == {"phantom", "real"} and results["steps"] == 2
    phantom, own = results["data"]["phantom"], results["arms"]["none/0"]["phantom"]
    assert len(phantom["patients"]) == len(own["l1"]) == 18 and phantom["findings"] == FINDINGS
    text = ablation.tables(results)
    assert f"| none | 1 | {np.mean(own['l1']):.4f} (" in text and "| phantom, 18 images |" in text


def test_scores_are_means_over_seeds_of_sklearns_and_differences_are_paired():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (60, 2))
    common = {
        "findings": ["a", "b"],
        "labels": np.where(random.random((60, 2)) < 0.1, -1, truth).tolist(),
        "patients": [f"p{i // 2}" for i in range(60)],
        "original": (truth + random.normal(0, 0.5, (60, 2))).tolist(),
    }

    def seed(noise: float) -> dict:
        logits = np.array(common["original"]) + random.normal(0, noise, (60, 2))
        return {
            "l1": random.uniform(0, noise, 60).tolist(),
            "psnr": [20.0] * 60,
            "octaves": [noise],
            "logits": logits.tolist(),
        }

    good, bad = [seed(0.5), seed(0.5)], [seed(3.0), seed(3.0)]
    own, other = ablation.scores_of(common, good), ablation.scores_of(common, bad)
    labels = np.array(common["labels"])
    lost = []
    for result in good:
        for f in range(2):
            known = labels[:, f] >= 0
            before, after = (
                roc_auc_score(labels[known, f], np.array(v)[known, f]) for v in (common["original"], result["logits"])
            )
            lost.append(before - after)
    assert own["auroc"][0] == pytest.approx(np.mean(lost)) and own["l1"][0] == pytest.approx(
        np.mean([result["l1"] for result in good])
    )
    value, low, high = map(
        float,
        ablation.difference(other["auroc"], own["auroc"])
        .replace("(", "")
        .replace(")", "")
        .replace(" to ", " ")
        .split(),
    )
    assert 0 < low < value < high
    assert ablation.difference(own["auroc"], own["auroc"]) == "0.000 (0.000 to 0.000)"
    results = {"steps": 3, "data": {"phantom": common | {"blocks": bad[0]}}, "arms": {}}
    for name, seeds in (("none", bad), ("all", good)):
        for k, result in enumerate(seeds):
            results["arms"][f"{name}/{k}"] = {"phantom": result, "precision": "float32", "device": "cpu"}
    text = ablation.tables(results)
    assert text.index("| all | 2 |") < text.index("| none | 2 |") and " than all |" in text
    assert (
        "3 steps each, float32 on cpu" in text
        and "| loss of AUROC, phantom | AUROC of originals | all | none |" in text
    )
