"""Loading a base LLM by folder or asset; everything that cannot be loaded says what could be."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer


def test_a_folder(tmp_path):
    model, tokenizer = build_model("llama", 340), build_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_language_model(str(tmp_path), torch.bfloat16)
    assert next(again.parameters()).dtype == torch.bfloat16 and not again.training
    torch.testing.assert_close(
        load_language_model(str(tmp_path)).state_dict(), model.state_dict(), rtol=0, atol=0, check_dtype=False
    )
    assert load_text_tokenizer(str(tmp_path))("Is there")["input_ids"] == tokenizer("Is there")["input_ids"]


@pytest.mark.parametrize("name", ["no/such-model-here", "chest-ct"])
def test_what_cannot_be_loaded(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_language_model, load_text_tokenizer):
        with pytest.raises(UserError) as caught:
            load(name)
        assert name in str(caught.value)


def test_damaged_folders(tmp_path):
    build_model("llama", 340).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="could not be loaded"):
        load_text_tokenizer(str(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="could not be loaded"):
        load_language_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="could not be loaded"):
        load_language_model(str(tmp_path))
