"""Alignment teaches the first layers, leaves the others and the base model alone, and resumes to the same weights."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.checkpoints import load_weights
from llmcxr.foundation.processes import Processes
from llmcxr.tuning import alignment
from llmcxr.tuning.alignment import align, first_layers
from llmcxr.tuning.settings import AlignmentSettings, TuningSettings
from llmcxr.tuning.tunable import TunableModel
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

ONE = Processes("cpu")
K, L = 8, 4
SETTINGS = AlignmentSettings(steps=60, learning_rate=1e-2)


def tunable(kind="llama", tied=True, dtype=torch.bfloat16):
    tokenizer = build_tokenizer()
    model = build_model(kind, len(tokenizer), tied=tied).to(dtype)
    vocabulary = ImageVocabulary.grow(tokenizer, K)
    rows = (
        torch.randn(K, model.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(1)) * 0.3
    )
    return TunableModel(model, vocabulary, rows, TuningSettings(lora_rank=4))


def data(vocabulary):
    """Code 3 anywhere in the image is the finding; the second is never known."""
    codes = np.random.default_rng(0).integers(0, K, (96, L))
    codes[:, -1] = 0
    present = (codes == 3).any(1).astype(np.float32)
    prompts = np.stack([[5, *vocabulary.encode_codes(c.astype(np.uint16)), 6] for c in codes])
    return prompts, np.stack([present, np.full(96, np.nan, dtype=np.float32)], 1)


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("gpt2", True), ("neox", False)])
def test_findings_are_learned_by_the_first_layers_only(kind, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "LAYERS", 1)  # of two
    model = tunable(kind, tied)
    before = model.state()
    depth = model.model.config.num_hidden_layers
    align(model, *data(model.vocabulary), SETTINGS, 0, tmp_path, ONE)
    curve = json.loads((tmp_path / "curves.json").read_text())
    assert curve[0]["loss"] > 0.6 and np.mean([c["loss"] for c in curve[-2:]]) < 0.45
    after = load_weights(tmp_path / "weights.safetensors")
    assert set(after) == set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    last = f".{depth - 1}."
    assert any("lora" in name for name in changed) and any("rows" in name for name in changed)
    assert not any(last in name for name in changed)
    assert model.model.config.num_hidden_layers == depth and model.state().keys() == before.keys()


def test_all_layers_are_back_even_after_an_error():
    model = tunable().model
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with pytest.raises(RuntimeError), first_layers(model, 1):
        assert not torch.equal(model(ids).logits, before)
        raise RuntimeError
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("kill", [1, 5, 11])
def test_a_stopped_alignment_ends_with_the_same_weights(kill, tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, steps=12)
    whole, part, again = tunable(), tunable(), tunable()
    align(whole, *data(whole.vocabulary), settings, 0, tmp_path / "whole", ONE)
    real = alignment.stream

    def stops(*key):
        if key[-1] == kill:
            raise KeyboardInterrupt
        return real(*key)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(alignment, "stream", stops)
        align(part, *data(part.vocabulary), settings, 0, tmp_path / "part", ONE, save_minutes=0)
    assert (tmp_path / "part" / "checkpoint.pt").exists()
    align(again, *data(again.vocabulary), settings, 0, tmp_path / "part", ONE)
    one, two = (load_weights(tmp_path / n / "weights.safetensors") for n in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole" / "curves.json").read_text() == (tmp_path / "part" / "curves.json").read_text()
