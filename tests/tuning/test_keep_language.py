"""Replay: texts made once and alike, kept on disk, learned at every token. The measurement against sums over full logits."""

from __future__ import annotations

import math

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
from llmcxr.tuning import keep_language
from llmcxr.tuning.keep_language import (
    LanguageCheck,
    first_words,
    general_texts,
    load_texts,
    perplexity,
    save_texts,
    summed_loss,
    write_texts,
)
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
from llmcxr.vocabulary.language_model import load_language_model, load_text_tokenizer

K = 16
VOCABULARY = ImageVocabulary.grow(build_tokenizer(), K)
TEMPLATE = build_template("chat", VOCABULARY.tokenizer, "")
TEXTS = ["The heart is normal in size.", "Yes.", "Below is an instruction that describes a task."]
TURNS = [Turn("Say yes.", "", "Yes."), Turn("Say no to this", "The lungs are clear.", "No."), Turn("x " * 300, "", "a")]


def nll(model, ids, places) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-logits[t - 1, ids[t]].item() for t in places]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_perplexity_by_hand(kind):
    model = build_model(kind, 340, True)
    encoded = [VOCABULARY.encode_text(text) for text in TEXTS]
    values = [v for ids in encoded for v in nll(model, ids, range(1, len(ids)))]
    assert perplexity(model, VOCABULARY, TEXTS) == pytest.approx(math.exp(np.mean(values)), rel=1e-4)


def test_probability_of_image_tokens_counts_against_the_model():
    model = build_model("llama", 340, True)
    before = perplexity(model, VOCABULARY, TEXTS)
    grow_language_model(model, VOCABULARY, torch.zeros(K, 32))  # logit 0 for each image token
    total = [
        math.log1p(K * math.exp(-torch.logsumexp(row, 0).item()))
        for text in TEXTS
        for row in model(torch.tensor([VOCABULARY.encode_text(text)])).logits[0, :-1, :340].double()
    ]
    assert perplexity(model, VOCABULARY, TEXTS) == pytest.approx(before * math.exp(np.mean(total)), rel=1e-4)


def test_the_trace():
    template = build_template("chat", VOCABULARY.tokenizer)
    check = LanguageCheck(VOCABULARY, template, TURNS, max_tokens=300)
    assert len(check.instructions) == 2, "the longest is passed over"
    assert len(check.texts) == len(general_texts()) > 16
    model = build_model("llama", 340, True).train()
    base = check.extend([], "base", model)
    assert model.training, "left as it was"
    values = []
    for example in check.instructions:
        values += nll(model, example.ids.tolist(), np.flatnonzero(example.supervised).tolist())
    value = perplexity(model, VOCABULARY, general_texts())
    expected = {"after": "base", "perplexity": value, "perplexity_ratio": 1.0, "instruction_loss": np.mean(values)}
    expected["rounds"] = math.ceil(len(general_texts()) / 8)
    assert base == [{k: pytest.approx(v, rel=1e-4) if k != "after" else v for k, v in expected.items()}]
    grow_language_model(model, VOCABULARY, torch.ones(K, 32))
    trace = check.extend(base, "stage1", model)
    assert trace[:1] == base and trace[1]["after"] == "stage1"
    assert trace[1]["perplexity_ratio"] == trace[1]["perplexity"] / base[0]["perplexity"] > 1
    assert LanguageCheck(VOCABULARY, template, [], 300).extend([], "base", model)[0]["instruction_loss"] is None


def test_no_example_has_no_loss():
    assert summed_loss(build_model("llama", 340), [], VOCABULARY) == (0, 0)


def test_a_measurement_takes_what_fits_in_its_time_and_later_ones_the_same(monkeypatch):
    """It went through all texts whatever a stage's length: minutes beside a stage of seconds."""
    model, template = build_model("llama", 340, True), build_template("chat", VOCABULARY.tokenizer)
    check, clock = LanguageCheck(VOCABULARY, template, TURNS, max_tokens=300), [0.0]
    real = summed_loss

    def slow(model, examples, vocabulary):
        clock[0] += len(examples)  # a second each
        return real(model, examples, vocabulary)

    monkeypatch.setattr(keep_language, "summed_loss", slow)
    monkeypatch.setattr(keep_language.time, "monotonic", lambda: clock[0])
    for seconds, texts in ((0.0, 8), (21.0, 16), (1e9, len(general_texts()))):
        clock[0] = 0.0
        (base,) = check.extend([], "base", model, seconds)
        assert clock[0] == texts + 2 and base["rounds"] == math.ceil(texts / 8)
        assert base["perplexity"] == pytest.approx(perplexity(model, VOCABULARY, general_texts()[:texts]), rel=1e-5)
        clock[0] = 0.0
        after = check.extend([base], "stage1", model, 0.0)[1]
        assert clock[0] == texts + 2 and after["perplexity_ratio"] == pytest.approx(1.0)


def test_the_base_model_writes_texts_of_its_own():
    name = "smollm2-135m-instruct"
    model, vocabulary = load_language_model(name, torch.bfloat16), ImageVocabulary.grow(load_text_tokenizer(name), 16)
    state = torch.get_rng_state()
    texts = write_texts(model, vocabulary, 5, 0, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert texts == write_texts(model, vocabulary, 5, 0, 8)
    assert len(set(texts)) == 5 and all(text[0].isupper() for text in texts)
    assert all(2 <= len(vocabulary.encode_text(text)) <= 10 for text in texts)  # spelled anew it may take a token more
    assert texts != write_texts(model, vocabulary, 5, 1, 8)
    # A checkpoint that asks for penalties or cuts has no say: these are samples of the model's own distribution.
    model.generation_config.repetition_penalty, model.generation_config.min_p = 5.0, 0.9
    assert texts == write_texts(model, vocabulary, 5, 0, 8)


def test_a_begin_token_comes_first_where_the_tokenizer_puts_one():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 16)
    assert vocabulary.begin_ids == []
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 16)
    vocabulary.begin_ids = [1]
    rendered = render(InstructionExample("language", (), plain="The heart"), TEMPLATE, vocabulary)
    assert rendered.ids.tolist() == [1, *vocabulary.encode_text("The heart")] and not rendered.supervised[0]
    assert len(write_texts(build_model("llama", 340, True), vocabulary, 4, 0, 2)) == 4


def test_first_words_are_whole_or_else_any_text():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 16)
    words = [str(vocabulary.tokenizer.decode([i])) for i in first_words(vocabulary)]
    assert "The" in words and all(word[0].isupper() and word.isalpha() and len(word) > 1 for word in words)
    texts = write_texts(build_model("llama", 340, True), vocabulary, 70, 0, 3)
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
        ("tuning.language={replay_texts: 5}", "loss: base_model"),
        ("tuning.language={replay_texts: -1}", "-1 should be 0 to"),
        (
            "tuning={language: {loss: base_model, replay_texts: 5}, stages: [{mixture: {cxr_vqa: 1}}]}",
            "no stage takes the texts",
        ),
        ("tuning={method: full, language: {loss: base_model}}", "needs method: lora or qlora"),
        (
            "tuning={findings_first: [cxr_vqa]}",
            "findings_first: 'cxr_vqa' should be one of report_to_cxr, cxr_to_report",
        ),
        (
            "tuning={findings_first: [cxr_to_report], decoding: {drawing_candidates: 2}}",
            "needs findings_first: .report_to_cxr",
        ),
        ("tuning={findings_first: [report_to_cxr], decoding: {ask_sides: true}}", "findings_first: .cxr_to_report"),
        ("tuning={measure_share: 1.5}", "measure_share: 1.5 should be 0 to 1"),
        ("tuning.decoding={report_guidance: 2}", "need findings_first"),
        ("tuning.decoding={drawing_candidates: 2}", "needs findings_first"),
        ("tuning.decoding={drawing_guidance: 2}", "needs an unguided_share"),
        ("tuning={findings_first: [cxr_to_report], decoding: {report_guidance: .inf}}", "above 0"),
        ("tuning={findings_first: [cxr_to_report], decoding: {report_candidates: 0}}", "0 should be 1 to"),
        ("tuning.stages=[{task_loss_weights: {reports: 2}}]", "no such task"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, override, message):
    (tmp_path / "r.yaml").write_text("name: r\n")
    with pytest.raises(UserError, match=message):
        load_settings(Recipe, tmp_path / "r.yaml", [override])
