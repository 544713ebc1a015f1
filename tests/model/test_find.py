"""A model's name means one thing, wherever it is given: for use, for measuring, and to train on from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.errors import UserError
from llmcxr.model.find import find_model, find_start

INFO = json.loads((SHIPPED_MODELS / "phantom" / "llmcxr.json").read_text())


@pytest.fixture
def run(tmp_path):
    """The folder of a run, as far as finding looks."""
    folder = tmp_path / "runs" / "one"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "llmcxr.json").write_text(json.dumps(INFO))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"tuning": {"stages": [{"name": "a"}, {"name": "b"}]}}))
    (folder / "b").mkdir()
    (folder / "b" / "weights.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub, and the folder that it gives."""
    asked = []
    folder = []

    def download(name, allow_patterns, dry_run=False):
        if dry_run:
            files = Path(folder[0]).glob("*.json")
            return [SimpleNamespace(file_size=p.stat().st_size, will_download=True) for p in files]
        asked.append(name)
        assert not any(p.endswith((".bin", ".pt", ".pkl", ".py")) or p == "*" for p in allow_patterns)
        return str(folder[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked, folder


def test_a_run_and_its_model(run):
    assert find_model(run) == find_model(str(run)) == find_model(run / "model") == run / "model"
    start = find_start(str(run))
    assert start.weights == run / "b" / "weights.safetensors" and start.folder == run / "model"
    with pytest.raises(UserError, match="holds a merged model, which has no adapters"):
        find_start(run / "model")


def test_a_packed_model_to_train_on_from():
    for name in ("phantom", SHIPPED_MODELS / "phantom"):
        start = find_start(name)
        assert start.weights.parent == start.folder == SHIPPED_MODELS / "phantom"


def test_a_repository_of_the_hub(run, hub, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    asked, folder = hub
    folder.append(run / "model")
    with caplog.at_level(logging.INFO, "llmcxr"):
        assert find_model("someone/model") == run / "model"
    assert "Fetching someone/model from the Hugging Face hub, once: 0 MB" in caplog.text
    folder[:] = [SHIPPED_MODELS / "phantom"]
    assert find_start("someone/packed").folder == SHIPPED_MODELS / "phantom"
    assert asked == ["someone/model", "someone/packed"]
    folder[:] = [tmp_path]
    with pytest.raises(UserError, match=r"no model 'someone/else'.*holds no model.*phantom"):
        find_model("someone/else")


def test_the_hub_is_asked_only_where_nothing_local_can_be_meant(run, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "runs/on", "./a/b", "/a/b", "a/b/c", "../x", run.parent):
        with pytest.raises(UserError, match="there is no model"):
            find_model(name)
    assert hub[0] == [] and find_model("runs/one").samefile(run / "model")


def test_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"'someone/model' is no folder here, and could not be fetched.*connect once"):
        find_model("someone/model")


def test_a_name_that_the_hub_cannot_have(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("some..one/model", "-a/b", "a/b.git"):
        with pytest.raises(UserError, match=f"'{name}' is no folder here"):
            find_model(name)


def test_a_run_that_cannot_be_trained_on_from(run):
    (run / "b" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"b/weights\.safetensors does not exist. Finish that run first"):
        find_start(str(run))
    for text in ("tuning: {stages: []}", "tuning: 3", "[]", ""):
        (run / "recipe.yaml").write_text(text)
        with pytest.raises(UserError, match=r"recipe\.yaml names no stage of tuning"):
            find_start(str(run))
