"""Every shipped recipe loads, and says clearly what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcxr.cli import main
from llmcxr.foundation.settings import load_settings
from llmcxr.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_is_valid(path):
    recipe = load_settings(Recipe, path)
    assert recipe.name == path.stem and recipe.about


def test_there_are_recipes():
    assert {"quickstart", "phantom", "mimic-cxr-paper", "mimic-cxr-qwen3"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.startswith("mimic")], ids=lambda p: p.stem)
def test_missing_data_are_named_with_how_to_get_them(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(path), "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "the folder of the images, data/mimic-cxr-jpg, does not exist" in error
    assert "physionet.org" in error and "make_mimic_table.py" in error
    (tmp_path / "data" / "mimic-cxr-jpg").mkdir(parents=True)
    assert main(["run", str(path), "device=cpu"]) == 2
    assert "the table data/mimic-cxr.csv does not exist" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/manifest.parquet"))


def test_the_paper_recipe_is_the_papers():
    """What the paper and its published runs state (sections 2.1 to 2.4.2)."""
    recipe = load_settings(Recipe, next(p for p in RECIPES if p.stem == "mimic-cxr-paper"))
    assert recipe.llm == "databricks/dolly-v2-3b"
    a = recipe.image_tokenizer.architecture
    assert (a.image_size, a.grid, a.codebook_size, a.code_dim, a.blocks) == (256, 16, 1024, 256, 2)
    assert a.channels == [128, 128, 256, 256, 512] and recipe.image_tokenizer.perceptual == "download"
    assert a.kind == "convolutional" and recipe.clinical_features.weights.startswith("densenet121-res224")
    t = recipe.tuning
    assert t.alignment.steps == 0 and t.loss == "response"
    assert (t.method, t.template, t.row_start, t.image_softmax, t.language.loss) == (
        "full",
        "paper",
        "random",
        "all_rows",
        "answers",
    )
    assert t.questions_per_image == 1 and not t.task_loss_weights
    assert len(t.stages) == 2
    for stage in t.stages:
        weights = stage.mixture
        assert weights["language"] == pytest.approx(0.2 * sum(weights.values()))
        assert weights["report_to_cxr"] == weights["cxr_to_report"]
        assert stage.learning_rate == stage.rows_learning_rate == 5e-6
    first, second = (stage.cohort for stage in t.stages)
    assert first.sections == "findings_and_impression" and not first.views and not first.earliest_only
    assert second.sections == "impression" and set(second.views) == {"AP", "PA"} and second.earliest_only
