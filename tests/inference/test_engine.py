"""Decoding: whatever the weights prefer, a response is text or an image of exactly L codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcxr.inference.backend import Sampling
from llmcxr.inference.engine import GREEDY, PLAUSIBLE, Engine, draw_tokens
from llmcxr.instructions.example import Turn
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, L, SPARE = 8, 5, 9


def build(kind="llama", tied=True, bias_to=None) -> Engine:
    """`bias_to` gives these rows of an untied head the direction of every hidden state, so they win by far."""
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model(kind, vocabulary.first_id + K + SPARE, tied)
    rows = 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1))
    grow_language_model(model, vocabulary, rows)
    if bias_to is not None:
        with torch.no_grad():
            model.base_model.final_layer_norm.bias.fill_(5.0)
            model.get_output_embeddings().weight[bias_to] = 3.0
    return Engine(model, vocabulary, build_template("chat", vocabulary.tokenizer), L)


ENGINE = build()
PROMPTS = [
    render_prompt((Turn(text, codes),), ENGINE.template, ENGINE.vocabulary)
    for text, codes in (
        ("Draw.", ""),
        ("Is there a pleural effusion?", np.array([1, 2, 3, 0, 7])),
        ("Say", "the heart"),
    )
]


def control(engine: Engine) -> set[int]:
    ids = set(engine.vocabulary.tokenizer.added_tokens_decoder) - {engine.end_id}
    return ids | set(range(len(engine.vocabulary.tokenizer), engine.model.config.vocab_size))


@given(st.integers(0, 2**31), st.floats(0, 5), st.floats(0.1, 1), st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_an_image_has_exactly_its_length(seed, temperature, top_p, top_k):
    for r in ENGINE.generate(PROMPTS, "image", Sampling(temperature, top_p, top_k, 2, seed)):
        assert r.codes is not None and r.codes.shape == (L,) and r.codes.dtype == np.uint16
        assert r.codes.max() < K and r.text == "" and r.complete


def test_only_the_end_token_of_all_control_and_unused_rows_may_come():
    assert ENGINE.end_id == 2
    allowed = set(ENGINE._text.nonzero().flatten().tolist())
    assert allowed == set(range(3, 340)) | {2}
    assert set(ENGINE._first.nonzero().flatten().tolist()) == allowed | set(range(340, 340 + K))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_text_never_holds_what_the_model_strongly_prefers(temperature):
    engine = build("neox", False, bias_to=[*range(340, 340 + K + SPARE), 0, 1])
    with torch.no_grad():
        favourite = engine.model(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(10).indices
    assert not set(favourite.tolist()) - control(engine), "the model should want them"
    seen = []
    real = engine._response
    engine._response = lambda tokens: seen.append(tokens) or real(tokens)
    for r in engine.generate(PROMPTS, "text", Sampling(temperature, max_new_tokens=12, seed=3)):
        assert r.codes is None and "<VQ" not in r.text and "<|" not in r.text
    for tokens in seen:
        assert not control(engine) & set(tokens) and len(tokens) <= 12
        assert engine.end_id not in tokens[:-1]


@pytest.mark.parametrize(("rows", "image"), [([340, 344], True), ([60, 70], False)])
def test_any_modality_follows_the_first_token(rows, image):
    engine = build("neox", False, bias_to=rows)
    for r in engine.generate(PROMPTS, "any", Sampling(max_new_tokens=4)):
        assert (r.codes is not None) == image
        if image:
            assert len(r.codes) == L
        else:
            assert r.text and not r.complete


def test_a_text_ends_at_the_end_token():
    engine = build("neox", False, bias_to=[2])
    for r in engine.generate(PROMPTS, "text", GREEDY):
        assert r.text == "" and r.complete
    engine = build("neox", False, bias_to=[60])
    for r in engine.generate(PROMPTS, "text", Sampling(max_new_tokens=3)):
        assert not r.complete and r.text == engine.vocabulary.decode_text([60] * 3)


@pytest.mark.parametrize("kind", ["llama", "neox", "gpt2", "qwen3"])
@pytest.mark.parametrize("modality", ["text", "image", "any"])
def test_a_padded_batch_equals_single_prompts(kind, modality):
    engine = build(kind)
    sampling = Sampling(max_new_tokens=8)
    together = engine.generate(PROMPTS, modality, sampling)
    for prompt, r in zip(PROMPTS, together, strict=True):
        (alone,) = engine.generate([prompt], modality, sampling)
        assert r.text == alone.text and r.complete == alone.complete
        assert (r.codes is None) == (alone.codes is None)
        if r.codes is not None:
            np.testing.assert_array_equal(r.codes, alone.codes)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_text_equals_plain_argmax_without_cache(kind):
    engine = build(kind)
    seen = []
    real = engine._response
    engine._response = lambda tokens: seen.append(tokens) or real(tokens)
    engine.generate([PROMPTS[1]], "text", Sampling(max_new_tokens=6))
    ids = list(PROMPTS[1])
    for _ in range(len(seen[0])):
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids])).logits[0, -1]
        logits[~engine._text] = -torch.inf
        ids.append(int(logits.argmax()))
    assert ids[len(PROMPTS[1]) :] == seen[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_guided_codes_by_hand(kind, guidance):
    engine = build(kind)
    first, end = engine.vocabulary.first_id, engine.vocabulary.first_id + K
    plain = render_prompt((Turn("Draw any."),), engine.template, engine.vocabulary)
    sampling = Sampling(guidance=guidance)
    found = engine.generate(PROMPTS, "image", sampling, [plain] * len(PROMPTS))
    assert len(found) == len(PROMPTS)
    for prompt, r in zip(PROMPTS, found, strict=True):
        drawn: list[int] = []
        for _ in range(L):
            with torch.no_grad():
                a, b = (engine.model(torch.tensor([[*p, *drawn]])).logits[0, -1, first:end] for p in (prompt, plain))
            drawn.append(first + int((b + guidance * (a - b)).argmax()))
        assert r.codes is not None and [first + int(c) for c in r.codes] == drawn
    unguided = engine.generate(PROMPTS, "image", GREEDY)
    same = all(np.array_equal(a.codes, b.codes) for a, b in zip(found, unguided, strict=True))
    assert same == (guidance == 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("guidance", [1.0, 3.0, 30.0])
def test_guided_text_by_hand(kind, guidance):
    engine = build(kind)
    negative = [render_prompt((Turn(t),), engine.template, engine.vocabulary) for t in ("Say.", "No findings.", "a")]
    found = engine.generate(PROMPTS, "text", Sampling(max_new_tokens=6, guidance=guidance), negative)
    for prompt, other, r in zip(PROMPTS, negative, found, strict=True):
        written: list[int] = []
        while len(written) < 6 and written[-1:] != [engine.end_id]:
            with torch.no_grad():
                a, b = (engine.model(torch.tensor([[*p, *written]])).logits[0, -1] for p in (prompt, other))
            a[~engine._text] = -torch.inf
            likely = a.softmax(-1) >= PLAUSIBLE * a.softmax(-1).max()  # the others cannot come, however they are led
            written.append(int((b + guidance * (a - b)).masked_fill(~likely, -torch.inf).argmax()))
        assert r.complete == (written[-1] == engine.end_id)
        assert r.text == engine.vocabulary.decode_text([i for i in written if i != engine.end_id])
    plain = engine.generate(PROMPTS, "text", Sampling(max_new_tokens=6))
    assert ([r.text for r in found] == [r.text for r in plain]) == (guidance == 1)


def test_guidance_needs_a_modality_a_strength_and_as_many_prompts():
    for modality, sampling, negative in (
        ("any", Sampling(guidance=2.0), PROMPTS),
        ("text", GREEDY, PROMPTS),
        ("image", Sampling(guidance=2.0), PROMPTS[:1]),
    ):
        with pytest.raises(ValueError, match="one negative prompt"):
            ENGINE.generate(PROMPTS, modality, sampling, negative)


def test_the_seed_decides():
    def draw(seed):
        return np.stack([r.codes for r in ENGINE.generate(PROMPTS * 3, "image", Sampling(1.0, seed=seed))])

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("kind", "tied"), [("llama", True), ("neox", False), ("gpt2", True), ("qwen3", True), ("phi", False)]
)
def test_answer_probabilities_equal_a_full_pass(kind, tied):
    engine = build(kind, tied)
    head = engine.model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, std=2.0)
    codes = np.array([1, 2, 3, 0, 7])
    questions = [
        "Is there a nodule?",
        "Is there cardiomegaly?",
        "Yes?",
        "Is there a pleural effusion on the right side?",
    ]
    prompts = [render_prompt((Turn(q, codes),), engine.template, engine.vocabulary) for q in questions]
    found = engine.answer_probabilities(prompts, ("Yes.", "No."))
    ids = [engine.vocabulary.encode_text(a)[0] for a in ("Yes.", "No.")]
    for prompt, p in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = engine.model(torch.tensor([prompt])).logits[0, -1, ids].softmax(-1)
        np.testing.assert_allclose(p, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(engine.answer_probabilities(prompts[:1], ("Yes.", "No.")), found[:1], atol=1e-5)
    mixed = engine.answer_probabilities([prompts[0], [9, 8, 7]], ("Yes.", "No."))  # nothing in common
    np.testing.assert_allclose(mixed[0], found[0], atol=1e-5)
    np.testing.assert_allclose(engine.answer_probabilities([prompts[1]] * 2, ("Yes.", "No."))[1], found[1], atol=1e-5)


def test_answers_that_begin_alike_are_refused():
    with pytest.raises(ValueError, match="begin with the same token"):
        ENGINE.answer_probabilities(PROMPTS[:1], ("Yes.", "Yes!"))


def test_drawing_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)

    def shares(**options):
        drawn = draw_tokens(logits, Sampling(**options), generator)
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()

    assert shares(temperature=0.0) == [1, 0, 0, 0]
    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(temperature=1.0, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(temperature=1.0, top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(temperature=1.0, top_p=0.01) == [1, 0, 0, 0]
    square = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert shares(temperature=0.5) == pytest.approx((square / square.sum()).tolist(), abs=0.03)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_log_likelihoods_equal_a_full_pass(kind):
    engine = build(kind)
    responses = ["No abnormal finding.", "Left mass.", "a"]
    expected = []
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = [*prompt, *engine.vocabulary.encode_text(response), engine.end_id]
        with torch.no_grad():
            log_p = engine.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected.append(sum(log_p[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
    np.testing.assert_allclose(engine.log_likelihoods(PROMPTS, responses), expected, rtol=1e-5)
