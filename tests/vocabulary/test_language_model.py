"""Loading a base LLM by folder or asset; everything that cannot be loaded says what could be."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.vocabulary.language_model import check_language_model, load_language_model, load_text_tokenizer


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


def sizes(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: sizes(f / "config.json", hidden_size=48), "by its config.json it should be"),
        (lambda f: sizes(f / "config.json", hidden_size=-4), "could not be loaded"),
        (lambda f: sizes(f / "config.json", model_type="vit"), "could not be loaded"),
        (lambda f: sizes(f / "config.json", num_attention_heads="many"), "could not be loaded"),
        (lambda f: (f / "config.json").unlink(), "could not be loaded"),
        (lambda f: (f / "generation_config.json").write_text("{"), "its generation_config.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "the folder has none of model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "its model.safetensors"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-2.safetensors"}}'),
            "its part-2.safetensors is missing",
        ),
    ],
)
def test_what_is_no_language_model_is_known_without_its_weights(tmp_path, damage, message):
    build_model("llama", 340).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    config, tokenizer = check_language_model(str(tmp_path))
    assert config.max_position_embeddings == 2048 and len(tokenizer) == 340
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        check_language_model(str(tmp_path))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
