"""Perplexity and instruction loss against sums over full logits, for base and grown models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer

from llmcxr.instructions.example import Turn
from llmcxr.instructions.templates import build_template
from llmcxr.tuning.forgetting import LanguageCheck, general_texts, mean_loss, perplexity
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K = 16
VOCABULARY = ImageVocabulary.grow(build_tokenizer(), K)
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
    assert check.texts == general_texts()
    check.texts = check.texts[:3]
    model = build_model("llama", 340, True).train()
    base = check.extend([], "base", model)
    assert model.training, "left as it was"
    values = []
    for example in check.instructions:
        values += nll(model, example.ids.tolist(), np.flatnonzero(example.supervised).tolist())
    value = perplexity(model, VOCABULARY, check.texts)
    expected = {"after": "base", "perplexity": value, "perplexity_ratio": 1.0, "instruction_loss": np.mean(values)}
    assert base == [{k: pytest.approx(v, rel=1e-4) if k != "after" else v for k, v in expected.items()}]
    grow_language_model(model, VOCABULARY, torch.ones(K, 32))
    trace = check.extend(base, "stage1", model)
    assert trace[:1] == base and trace[1]["after"] == "stage1"
    assert trace[1]["perplexity_ratio"] == trace[1]["perplexity"] / base[0]["perplexity"] > 1
    assert LanguageCheck(VOCABULARY, template, [], 300).extend([], "base", model)[0]["instruction_loss"] is None


def test_no_example_has_no_loss():
    assert math.isnan(mean_loss(build_model("llama", 340), [], VOCABULARY))
