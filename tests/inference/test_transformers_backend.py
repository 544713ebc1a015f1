"""Decoding: whatever the weights prefer, a response is text or an image of exactly L codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcxr.inference import transformers_backend
from llmcxr.inference.backend import GREEDY, Request, Response, Sampling
from llmcxr.inference.slots import SlotCache
from llmcxr.inference.transformers_backend import PLAUSIBLE, TransformersBackend, group_by_beginning
from llmcxr.instructions.example import Turn
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, L, SPARE = 8, 5, 9


def build(kind="llama", tied=True, bias_to=None) -> TransformersBackend:
    """`bias_to` gives these rows of an untied head the direction of every hidden state, so they win by far."""
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model(kind, vocabulary.first_id + K + SPARE, tied)
    rows = 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1))
    grow_language_model(model, vocabulary, rows)
    if bias_to is not None:
        with torch.no_grad():
            model.base_model.final_layer_norm.bias.fill_(5.0)
            model.get_output_embeddings().weight[bias_to] = 3.0
    return TransformersBackend(model, vocabulary, build_template("chat", vocabulary.tokenizer), L)


BACKEND = build()
PROMPTS = [
    render_prompt((Turn(text, codes),), BACKEND.template, BACKEND.vocabulary)
    for text, codes in (
        ("Draw.", ""),
        ("Is there a pleural effusion?", np.array([1, 2, 3, 0, 7])),
        ("Say", "the heart"),
    )
]


def ask(prompts, grammar, sampling=GREEDY, negative=None) -> list[Request]:
    less = negative or [None] * len(prompts)
    return [Request(p, grammar, sampling, n) for p, n in zip(prompts, less, strict=True)]


def control(backend: TransformersBackend) -> set[int]:
    ids = set(backend.vocabulary.tokenizer.added_tokens_decoder) - {backend.end_id}
    return ids | set(range(len(backend.vocabulary.tokenizer), backend.model.config.vocab_size))


@given(st.integers(0, 2**31), st.floats(0, 5), st.floats(0.1, 1), st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_an_image_has_exactly_its_length(seed, temperature, top_p, top_k):
    for r in BACKEND.generate(ask(PROMPTS, "image", Sampling(temperature, top_p, top_k, 2, seed))):
        assert r.codes is not None and r.codes.shape == (L,) and r.codes.dtype == np.uint16
        assert r.codes.max() < K and r.text == "" and r.complete


def test_only_the_end_token_of_all_control_and_unused_rows_may_come():
    assert BACKEND.end_id == 2
    allowed = set(BACKEND._text.nonzero().flatten().tolist())
    assert allowed == set(range(3, 340)) | {2}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_text_never_holds_what_the_model_strongly_prefers(temperature):
    backend = build("neox", False, bias_to=[*range(340, 340 + K + SPARE), 0, 1])
    with torch.no_grad():
        favourite = backend.model(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(10).indices
    assert not set(favourite.tolist()) - control(backend), "the model should want them"
    seen = []
    real = backend.response
    backend.response = lambda tokens, grammar: seen.append(tokens) or real(tokens, grammar)
    for r in backend.generate(ask(PROMPTS, "text", Sampling(temperature, max_new_tokens=12, seed=3))):
        assert r.codes is None and "<VQ" not in r.text and "<|" not in r.text
    for tokens in seen:
        assert not control(backend) & set(tokens) and len(tokens) <= 12
        assert backend.end_id not in tokens[:-1]


def test_a_text_ends_at_the_end_token():
    backend = build("neox", False, bias_to=[2])
    for r in backend.generate(ask(PROMPTS, "text", GREEDY)):
        assert r.text == "" and r.complete
    backend = build("neox", False, bias_to=[60])
    for r in backend.generate(ask(PROMPTS, "text", Sampling(max_new_tokens=3))):
        assert not r.complete and r.text == backend.vocabulary.decode_text([60] * 3)


@pytest.mark.parametrize("kind", ["llama", "neox", "gpt2", "qwen3"])
@pytest.mark.parametrize("grammar", ["text", "image"])
def test_a_padded_batch_equals_single_prompts(kind, grammar):
    backend = build(kind)
    sampling = Sampling(max_new_tokens=8)
    together = backend.generate(ask(PROMPTS, grammar, sampling))
    for prompt, r in zip(PROMPTS, together, strict=True):
        (alone,) = backend.generate(ask([prompt], grammar, sampling))
        assert r.text == alone.text and r.complete == alone.complete
        assert (r.codes is None) == (alone.codes is None)
        if r.codes is not None:
            np.testing.assert_array_equal(r.codes, alone.codes)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gemma3"])  # the last two with windows of 8 tokens
def test_greedy_text_equals_plain_argmax_without_cache(kind):
    backend = build(kind)
    tokens: list[list[int]] = [[], [], []]
    for number, token in backend.stream(ask(PROMPTS, "text", Sampling(max_new_tokens=6))):
        tokens[number].append(token)
    for prompt, found in zip(PROMPTS, tokens, strict=True):
        ids = list(prompt)
        for _ in found:
            with torch.no_grad():
                logits = backend.model(torch.tensor([ids])).logits[0, -1]
            logits[~backend._text] = -torch.inf
            ids.append(int(logits.argmax()))
        assert ids[len(prompt) :] == found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_guided_codes_by_hand(kind, guidance):
    backend = build(kind)
    first, end = backend.vocabulary.first_id, backend.vocabulary.first_id + K
    plain = render_prompt((Turn("Draw any."),), backend.template, backend.vocabulary)
    sampling = Sampling(guidance=guidance)
    found = backend.generate(ask(PROMPTS, "image", sampling, [plain] * len(PROMPTS)))
    assert len(found) == len(PROMPTS)
    for prompt, r in zip(PROMPTS, found, strict=True):
        drawn: list[int] = []
        for _ in range(L):
            with torch.no_grad():
                a, b = (backend.model(torch.tensor([[*p, *drawn]])).logits[0, -1, first:end] for p in (prompt, plain))
            drawn.append(first + int((b + guidance * (a - b)).argmax()))
        assert r.codes is not None and [first + int(c) for c in r.codes] == drawn
    unguided = backend.generate(ask(PROMPTS, "image", GREEDY))
    same = all(np.array_equal(a.codes, b.codes) for a, b in zip(found, unguided, strict=True))
    assert same == (guidance == 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("guidance", [1.0, 3.0, 30.0])
def test_guided_text_by_hand(kind, guidance):
    backend = build(kind)
    negative = [render_prompt((Turn(t),), backend.template, backend.vocabulary) for t in ("Say.", "No findings.", "a")]
    found = backend.generate(ask(PROMPTS, "text", Sampling(max_new_tokens=6, guidance=guidance), negative))
    for prompt, other, r in zip(PROMPTS, negative, found, strict=True):
        written: list[int] = []
        while len(written) < 6 and written[-1:] != [backend.end_id]:
            with torch.no_grad():
                a, b = (backend.model(torch.tensor([[*p, *written]])).logits[0, -1] for p in (prompt, other))
            a[~backend._text] = -torch.inf
            likely = a.softmax(-1) >= PLAUSIBLE * a.softmax(-1).max()  # the others cannot come, however they are led
            written.append(int((b + guidance * (a - b)).masked_fill(~likely, -torch.inf).argmax()))
        assert r.complete == (written[-1] == backend.end_id)
        assert r.text == backend.vocabulary.decode_text([i for i in written if i != backend.end_id])
    plain = backend.generate(ask(PROMPTS, "text", Sampling(max_new_tokens=6)))
    assert ([r.text for r in found] == [r.text for r in plain]) == (guidance == 1)


def test_guidance_needs_a_strength():
    with pytest.raises(ValueError, match="needs a strength"):
        Request(PROMPTS[0], "image", GREEDY, PROMPTS[1])


def test_tokens_stream_as_they_are_decided():
    """Rows take turns, and each ends with what ends its response: what is whole is the same."""
    sampling = Sampling(1.0, max_new_tokens=9, seed=5)
    rows: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, (row, token) in enumerate(BACKEND.stream(ask(PROMPTS, "image", sampling))):
        assert row == number % 3
        rows[row].append(token - BACKEND.vocabulary.first_id)
    assert [r.codes.tolist() for r in BACKEND.generate(ask(PROMPTS, "image", sampling))] == list(rows.values())
    ending = build("neox", False, bias_to=[2, 60])  # some stop early
    written: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for row, token in ending.stream(ask(PROMPTS, "text", Sampling(50.0, max_new_tokens=9, seed=5))):
        assert written[row][-1:] != [ending.end_id]
        written[row].append(token)
    responses = ending.generate(ask(PROMPTS, "text", Sampling(50.0, max_new_tokens=9, seed=5)))
    for tokens, response in zip(written.values(), responses, strict=True):
        assert response.complete == (tokens[-1] == ending.end_id)
        assert response.text == ending.vocabulary.decode_text([i for i in tokens if i != ending.end_id])


def test_no_prompts_no_responses():
    assert BACKEND.generate(ask([], "text", GREEDY)) == BACKEND.generate(ask([], "image", GREEDY)) == []
    assert BACKEND.answer_probabilities([], ("Yes.", "No.")).shape == (0, 2)


def many(count: int = 30) -> list[Request]:
    """Requests of every kind, of many lengths, some guided."""
    random, requests = np.random.default_rng(0), []
    for i in range(count):
        prompt = PROMPTS[i % 3] if i % 4 else [*PROMPTS[i % 3], *random.integers(60, 300, i)]
        sampling = Sampling(
            [0.0, 1.0, 2.0][i % 3], [1.0, 0.8][i % 2], i % 5, max_new_tokens=3 + i % 9, seed=i, guidance=2.0
        )
        requests.append(Request(prompt, ("text", "image")[i % 2], sampling, PROMPTS[2] if i % 5 == 0 else None))
    return requests


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_request_is_answered_as_if_it_were_alone(kind, monkeypatch):
    """In any company and order, and where only a few find room at once."""
    backend, requests = build(kind), many()
    alone = [backend.generate([request])[0] for request in requests]

    def same(found: Response, expected: Response) -> bool:
        return found.text == expected.text and np.array_equal(found.codes, expected.codes)

    assert all(map(same, backend.generate(requests), alone))
    monkeypatch.setattr(transformers_backend, "ROWS", 7)
    order = np.random.default_rng(1).permutation(len(requests))
    found = backend.generate([requests[i] for i in order])
    assert all(same(r, alone[i]) for r, i in zip(found, order, strict=True))


def test_whoever_has_finished_makes_room(monkeypatch):
    rows = []
    begin_step = SlotCache.begin_step
    monkeypatch.setattr(SlotCache, "begin_step", lambda self: rows.append(len(self)) or begin_step(self))
    monkeypatch.setattr(transformers_backend, "ROWS", 8)
    requests = [Request(PROMPTS[0], "text", Sampling(1.0, max_new_tokens=2 + i % 7, seed=i)) for i in range(60)]
    BACKEND.generate(requests)
    assert max(rows) <= 8 and sum(rows) / len(rows) > 4


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_groups_hold_each_prompt_once_and_what_its_prompts_share(prompts, data):
    most = [data.draw(st.integers(0, len(p) - 1)) for p in prompts]
    groups = group_by_beginning(prompts, most)
    assert sorted(i for _, numbers in groups for i in numbers) == list(range(len(prompts)))
    for shared, numbers in groups:
        assert len({tuple(prompts[i][:shared]) for i in numbers}) == 1 and shared <= min(most[i] for i in numbers)


def test_prompts_of_one_image_are_read_together():
    image, other = list(range(100)), list(range(500, 600))
    prompts = [[1, *image, 7], [1, *other, 8], [1, *image, 9, 9], [1, *other, 6]]
    assert sorted(group_by_beginning(prompts, [len(p) - 1 for p in prompts])) == [(101, [0, 2]), (101, [3, 1])]


def test_a_text_ends_before_a_stop_and_repeats_less():
    backend = build("neox", False, bias_to=[60])
    word = backend.vocabulary.decode_text([60])
    (response,) = backend.generate(ask(PROMPTS[:1], "text", Sampling(max_new_tokens=9, stop=(word * 3,))))
    assert response.text == "" and response.complete
    tokens = [
        t for _, t in backend.stream(ask(PROMPTS[:1], "text", Sampling(max_new_tokens=4, repetition_penalty=1e9)))
    ]
    assert len(set(tokens)) > 1


def test_the_seed_decides():
    def draw(seed):
        return np.stack([r.codes for r in BACKEND.generate(ask(PROMPTS * 3, "image", Sampling(1.0, seed=seed)))])

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("kind", "tied"), [("llama", True), ("neox", False), ("gpt2", True), ("qwen3", True), ("phi", False)]
)
def test_answer_probabilities_equal_a_full_pass(kind, tied):
    backend = build(kind, tied)
    head = backend.model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, std=2.0)
    codes = np.array([1, 2, 3, 0, 7])
    questions = [
        "Is there a nodule?",
        "Is there cardiomegaly?",
        "Yes?",
        "Is there a pleural effusion on the right side?",
    ]
    prompts = [render_prompt((Turn(q, codes),), backend.template, backend.vocabulary) for q in questions]
    found = backend.answer_probabilities(prompts, ("Yes.", "No."))
    ids = [backend.vocabulary.encode_text(a)[0] for a in ("Yes.", "No.")]
    for prompt, p in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = backend.model(torch.tensor([prompt])).logits[0, -1, ids].softmax(-1)
        np.testing.assert_allclose(p, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(backend.answer_probabilities(prompts[:1], ("Yes.", "No.")), found[:1], atol=1e-5)
    mixed = backend.answer_probabilities([prompts[0], [9, 8, 7]], ("Yes.", "No."))  # nothing in common
    np.testing.assert_allclose(mixed[0], found[0], atol=1e-5)
    np.testing.assert_allclose(backend.answer_probabilities([prompts[1]] * 2, ("Yes.", "No."))[1], found[1], atol=1e-5)


def test_answers_that_begin_alike_are_refused():
    with pytest.raises(ValueError, match="begin with the same token"):
        BACKEND.answer_probabilities(PROMPTS[:1], ("Yes.", "Yes!"))


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_log_likelihoods_equal_a_full_pass(kind):
    backend = build(kind)
    responses = ["No abnormal finding.", "Left mass.", "a"]
    expected = []
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = [*prompt, *backend.vocabulary.encode_text(response), backend.end_id]
        with torch.no_grad():
            log_p = backend.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected.append(sum(log_p[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
    np.testing.assert_allclose(backend.log_likelihoods(PROMPTS, responses), expected, rtol=1e-5)
