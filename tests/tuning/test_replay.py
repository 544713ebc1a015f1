"""Texts of the base model: made once and alike, kept on disk, and learned at every token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import load_settings
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.rendering import fit, render
from llmcxr.instructions.templates import build_template
from llmcxr.recipe import Recipe
from llmcxr.tasks.language import LanguageItems
from llmcxr.tuning.replay import ReplaySettings, first_words, load_texts, save_texts, write_texts
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer

VOCABULARY = ImageVocabulary.grow(build_tokenizer(), 16)
TEMPLATE = build_template("chat", VOCABULARY.tokenizer, "")


def test_the_base_model_writes_texts_of_its_own():
    name = "smollm2-135m-instruct"
    model, vocabulary = load_language_model(name, torch.bfloat16), ImageVocabulary.grow(load_text_tokenizer(name), 16)
    state = torch.get_rng_state()
    texts = write_texts(model, vocabulary, ReplaySettings(texts=5, tokens=8))
    assert torch.equal(state, torch.get_rng_state())
    assert texts == write_texts(model, vocabulary, ReplaySettings(texts=5, tokens=8))
    assert len(set(texts)) == 5 and all(text[0].isupper() for text in texts)
    assert all(2 <= len(vocabulary.encode_text(text)) <= 10 for text in texts)  # spelled anew it may take a token more
    assert texts != write_texts(model, vocabulary, ReplaySettings(texts=5, tokens=8, seed=1))
    # A checkpoint that asks for penalties or cuts has no say: these are samples of the model's own distribution.
    model.generation_config.repetition_penalty, model.generation_config.min_p = 5.0, 0.9
    assert texts == write_texts(model, vocabulary, ReplaySettings(texts=5, tokens=8))


def test_a_begin_token_comes_first_where_the_tokenizer_puts_one():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 16)
    assert vocabulary.begin_ids == []
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 16)
    vocabulary.begin_ids = [1]
    rendered = render(InstructionExample("language", (), plain="The heart"), TEMPLATE, vocabulary)
    assert rendered.ids.tolist() == [1, *vocabulary.encode_text("The heart")] and not rendered.supervised[0]
    assert len(write_texts(build_model("llama", 340, True), vocabulary, ReplaySettings(texts=4, tokens=2))) == 4


def test_first_words_are_whole_or_else_any_text():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 16)
    words = [str(vocabulary.tokenizer.decode([i])) for i in first_words(vocabulary)]
    assert "The" in words and all(word[0].isupper() and word.isalpha() and len(word) > 1 for word in words)
    texts = write_texts(build_model("llama", 340, True), vocabulary, ReplaySettings(texts=70, tokens=3))
    assert len(texts) == 70 > len(words), "where there are fewer words than texts they come again"
    lower = ImageVocabulary.grow(build_tokenizer(), 16)
    lower.tokenizer.batch_decode = lambda rows: ["x"] * len(rows)
    assert first_words(lower) == [i for i in range(lower.first_id) if i not in lower.control_ids]


def test_a_plain_text_is_learned_whole_without_a_template():
    task = LanguageItems([Turn("Say yes.", "", "Yes.")], ["The heart is normal.", "<VQ0003> in text"])
    assert len(task) == 3
    for item, text in ((1, "The heart is normal."), (2, "<VQ0003> in text")):
        rendered = render(task.example(item, np.random.default_rng(0)), TEMPLATE, VOCABULARY)
        assert rendered.ids.tolist() == VOCABULARY.encode_text(text) and rendered.task == "language"
        assert rendered.supervised.tolist() == [False] + [True] * (len(rendered.ids) - 1)
        assert rendered.ids.max() < VOCABULARY.first_id
    assert fit(InstructionExample("language", (), plain="word " * 50), TEMPLATE, VOCABULARY, 20) is None


def test_saved_texts_come_back(tmp_path):
    texts = ['Two\nlines, "quoted"', "\u2028 and ü", "plain"]
    save_texts(tmp_path / "replay.jsonl", texts)
    assert load_texts(tmp_path / "replay.jsonl") == texts
    for broken in ("{", '{"txt": ""}', "[1]"):
        (tmp_path / "replay.jsonl").write_text(broken)
        with pytest.raises(UserError, match=r"replay\.jsonl cannot be read"):
            load_texts(tmp_path / "replay.jsonl")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuning.replay={texts: 5}", "language_loss: base_model"),
        ("tuning.replay={texts: -1}", "at least 0"),
        ("tuning.replay={tokens: 1}", "at least 2"),
        (
            "tuning={language_loss: base_model, replay: {texts: 5}, stages: [{replay: false}]}",
            "no stage takes the texts",
        ),
        ("tuning={language_loss: base_model, replay: {texts: 5, tokens: 2000}}", "no text that fits"),
        ("tuning.decoding={report_guidance: 2}", "need findings_first"),
        ("tuning.decoding={drawing_candidates: 2}", "need findings_first"),
        ("tuning.decoding={drawing_guidance: 2}", "needs an unguided_share"),
        ("tuning={findings_first: [cxr_to_report, report_to_cxr], decoding: {report_guidance: .inf}}", "above 0"),
        ("tuning={findings_first: [cxr_to_report, report_to_cxr], decoding: {report_candidates: 0}}", "at least 1"),
        ("tuning.stages=[{task_loss_weights: {reports: 2}}]", "no such task"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, override, message):
    (tmp_path / "r.yaml").write_text("name: r\n")
    with pytest.raises(UserError, match=message):
        load_settings(Recipe, tmp_path / "r.yaml", [override])
