"""Every shipped recipe loads, and says clearly what it lacks."""

from __future__ import annotations

import pytest
import yaml

from llmcxr.cli import main
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import build_settings, describe_settings, load_settings, settings_to_dict
from llmcxr.labelling.base import unreadable
from llmcxr.labelling.registry import build_labeller
from llmcxr.recipe import Recipe
from llmcxr.recipes import SHIPPED, about, find_recipe
from llmcxr.sources.registry import build_source
from llmcxr.studies.findings import LabelSet


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_valid(name):
    recipe = load_settings(Recipe, SHIPPED[name])
    assert recipe.name == name and recipe.about == about(name)
    assert build_settings(Recipe, yaml.safe_load(yaml.safe_dump(settings_to_dict(recipe)))) == recipe


def test_there_are_few_settings():
    """Each new one is paid for by another, or by a reason that is worth raising this: 13 say where four data sets
    lie."""
    assert len(describe_settings(Recipe)) <= 144


def test_they_are_found_by_name(tmp_path, monkeypatch, capsys):
    """A file of the user's comes first; a folder of that name does not hide a shipped recipe."""
    assert {"quickstart", "phantom", "mimic-cxr-paper", "mimic-cxr-qwen3"} <= set(SHIPPED)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_recipe("demo") == SHIPPED["demo"]
    (tmp_path / "phantom").write_text("name: own")
    assert not find_recipe("phantom").is_absolute() and find_recipe(str(SHIPPED["demo"])) == SHIPPED["demo"]
    with pytest.raises(UserError, match="did you mean quickstart.*Shipped are demo, .*, real-cxr"):
        find_recipe("quickstrat")
    assert main(["run", "recipes/none.yaml"]) == 2
    assert "recipes/none.yaml is neither a file nor a shipped recipe. Shipped are" in capsys.readouterr().err
    assert main(["recipes"]) == 0
    assert f"quickstart: {about('quickstart')}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mimic-cxr-paper", "mimic-cxr-qwen3"])
def test_generated_reports_are_read_for_the_findings_of_the_labels(name):
    recipe = load_settings(Recipe, SHIPPED[name])
    source = build_source(recipe.source, recipe.seed)
    assert len(source.findings) == 13 and not unreadable(build_labeller(recipe.labeller), LabelSet(source.findings))


@pytest.mark.parametrize("name", ["mimic-cxr-paper", "mimic-cxr-qwen3"])
def test_missing_data_are_named_with_how_to_get_them(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the LLM is missing, too
    assert main(["run", name, "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert (
        "the folder data/mimic-cxr-jpg does not exist. Set source.mimic_cxr.folder" in error
        and "physionet.org" in error
    )
    folder = tmp_path / "data" / "mimic-cxr-jpg"
    folder.mkdir(parents=True)
    assert main(["run", name, "device=cpu"]) == 2
    assert "holds no mimic-cxr-2.0.0-split.csv.gz" in capsys.readouterr().err
    for table in ("split", "metadata", "chexpert"):
        (folder / f"mimic-cxr-2.0.0-{table}.csv").touch()
    assert main(["run", name, "device=cpu"]) == 2
    assert "the reports data/mimic-cxr-reports.zip do not exist" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/manifest.parquet"))


def test_the_paper_recipe_is_the_papers():
    """What the paper and its published runs state (sections 2.1 to 2.4.2)."""
    recipe = load_settings(Recipe, SHIPPED["mimic-cxr-paper"])
    assert recipe.llm == "databricks/dolly-v2-3b"
    a = recipe.image_tokenizer.architecture
    assert (a.image_size, a.grid, a.codebook_size, a.code_dim, a.blocks) == (256, 16, 1024, 256, 2)
    assert a.channels == [128, 128, 256, 256, 512] and recipe.image_tokenizer.perceptual == "download"
    assert a.kind == "vqgan" and recipe.clinical_features.weights.startswith("densenet121-res224")
    t = recipe.tuning
    assert t.alignment.steps == 0 and t.loss == "response"
    assert (t.method, t.template, t.row_start, t.image_softmax, t.language.loss) == (
        "full",
        "paper",
        "random",
        "all_rows",
        "answers",
    )
    assert t.questions_per_image == 1
    assert len(t.stages) == 2
    for stage in t.stages:
        weights = stage.mixture
        assert not stage.task_loss_weights
        assert weights["language"] == pytest.approx(0.2 * sum(weights.values()))
        assert weights["report_to_cxr"] == weights["cxr_to_report"]
        assert stage.learning_rate == stage.rows_learning_rate == 5e-6
    first, second = (stage.cohort for stage in t.stages)
    assert first.sections == "findings_and_impression" and not first.views and not first.earliest_only
    assert second.sections == "impression" and set(second.views) == {"AP", "PA"} and second.earliest_only
