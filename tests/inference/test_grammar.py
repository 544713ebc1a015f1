"""Responses are whole, whatever is drawn: by hand, of any machine, and a thousand times of a model."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import Request, Response, Sampling
from llmcxr.inference.grammar import Progress, before_stop, segments
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Turn
from llmcxr.instructions.rendering import render_prompt
from llmcxr.instructions.templates import build_template
from llmcxr.vocabulary.growing import grow_language_model
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K, L = 64, 5
WHOLE = {"text": "t*e?", "image": f"c{{{L}}}", "in turn": f"(t|c{{{L}}})*e?"}


@given(
    st.sampled_from(list(WHOLE)), st.integers(1, 9), st.none() | st.integers(1, 30), st.randoms(use_true_random=False)
)
@trials(max_examples=300, deadline=None)
def test_every_way_through_the_machine_is_a_whole_response(grammar, most, room, random):
    if grammar == "image" and room is not None and room < L:
        with pytest.raises(ValueError, match="no room"):
            Progress(grammar, L, most, room)
        return
    progress, written = Progress(grammar, L, most, room), ""
    while not progress.ended:
        kinds = {"text": "te", "image": "c", "either": "tec"}[progress.next]
        for other in {*"tec"} - {*kinds}:
            with pytest.raises(ValueError, match="cannot come"):
                progress.take(other == "c", other == "e")
        kind = random.choice(kinds)
        progress.take(kind == "c", kind == "e")
        written += kind
    assert re.fullmatch(WHOLE[grammar], written)
    assert len(written) <= (room or 1000)
    if grammar != "image":
        assert len(written.replace("c" * L, "i")) <= most
    with pytest.raises(ValueError, match="cannot come"):
        progress.take(False)


def test_an_image_is_begun_only_where_it_has_room():
    progress = Progress("in turn", L, 9, room=L + 1)
    assert progress.next == "either"
    progress.take(image=False)
    assert progress.next == "either"
    progress.take(image=False)
    assert progress.next == "text" and not progress.ended


def test_segments_of_tokens():
    found = list(segments([1, 2, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 3], lambda i: i >= 90, L))
    assert found == [(False, [1, 2]), (True, [90, 91, 92, 93, 94]), (True, [95, 96, 97, 98, 99]), (False, [3])]


def test_text_ends_before_the_first_stop():
    assert before_stop("a b c", ("c", "b")) == "a "
    assert before_stop("a b", ("x",)) is before_stop("a", ()) is None
    with pytest.raises(UserError, match="empty text stands everywhere"):
        Sampling(stop=("",))


# ----------------------------------------------------------------------------------------------------- of a model


def build() -> TransformersBackend:
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("llama", vocabulary.first_id + K + 9, True)
    grow_language_model(model, vocabulary, 0.2 * torch.randn(K, 32, generator=torch.Generator().manual_seed(1)))
    return TransformersBackend(model, vocabulary, build_template("chat", vocabulary.tokenizer), L)


untrained = functools.cache(build)


@functools.cache
def tuned() -> TransformersBackend:
    """Learns for a second or two to write words, then an image, then a word."""
    backend = build()
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    prompt = prompt_of(backend)
    optimizer = torch.optim.Adam(backend.model.parameters(), 1e-2)
    words = [backend.vocabulary.encode_text(w) for w in ("The heart is normal.", "The lungs are clear.")]
    for _ in range(40):
        rows = []
        for own in words:
            codes = backend.vocabulary.encode_codes(np.sort(random.integers(0, K, L)))
            rows.append([*prompt, *own, *codes, *backend.vocabulary.encode_text("Clear."), backend.end_id])
        loss = sum(
            torch.nn.functional.cross_entropy(
                backend.model(torch.tensor([row])).logits[0, len(prompt) - 1 : -1], torch.tensor(row[len(prompt) :])
            )
            for row in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return backend


def prompt_of(backend: TransformersBackend) -> list[int]:
    return render_prompt((Turn("Report and draw."),), backend.template, backend.vocabulary)


def faults(backend: TransformersBackend, tokens: list[int], response: Response, most: int) -> list[str]:
    """What is wrong with a response in turn, and its tokens."""
    kinds = "".join("c" if backend.vocabulary.is_image(t) else "e" if t == backend.end_id else "t" for t in tokens)
    found = [] if re.fullmatch(WHOLE["in turn"], kinds) else [f"tokens {kinds}"]
    if (length := len(kinds.replace("c" * L, "i"))) > most or (length < most and not kinds.endswith("e")):
        found.append(f"{length} long")
    images = [s for s in response.segments if not isinstance(s, str)]
    if len(images) != kinds.count("c") // L or any(i.shape != (L,) or i.max() >= K for i in images):
        found.append("images")
    if any(re.search(r"<VQ|<\|", s) or not s for s in response.segments if isinstance(s, str)):
        found.append("texts")
    return found + ([] if response.complete == kinds.endswith("e") else ["complete"])


@pytest.mark.parametrize("make", [tuned, untrained])
def test_a_thousand_responses_are_whole(make):
    """At temperature 2, of the grammar with the most ways to go wrong, and of the others beside it."""
    backend, most = make(), 16
    prompt = prompt_of(backend)
    requests = [Request(prompt, "in turn", Sampling(2.0, max_new_tokens=most, seed=i)) for i in range(1000)]
    tokens: list[list[int]] = [[] for _ in requests]
    for number, token in backend.stream(requests):
        tokens[number].append(token)
    responses = [backend.response(own, request) for own, request in zip(tokens, requests, strict=True)]
    assert [f for own, r in zip(tokens, responses, strict=True) for f in faults(backend, own, r, most)] == []
    both = sum(len({type(s) for s in r.segments}) == 2 for r in responses)
    assert both > 200, "nothing was tested"
    for grammar in ("text", "image"):
        for r in backend.generate(
            [Request(prompt, grammar, Sampling(2.0, max_new_tokens=5, seed=i)) for i in range(100)]
        ):
            assert [isinstance(s, str) for s in r.segments] == [grammar == "text"]
            assert r.codes is None or (r.codes.shape == (L,) and r.codes.max() < K)


def test_a_tuned_model_writes_and_draws_in_turn():
    backend = tuned()
    (found,) = backend.generate([Request(prompt_of(backend), "in turn", Sampling(max_new_tokens=60))])
    assert [type(s) for s in found.segments] == [str, np.ndarray, str] and found.complete
    assert found.segments[2] == "Clear." and found.text.endswith("\nClear.") and found.codes is found.segments[1]


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_in_turn_equals_the_model_token_by_token(guidance):
    """Greedy, and led away from another prompt, by whole passes without a cache."""
    backend = tuned()
    prompt, other = prompt_of(backend), render_prompt((Turn("Say."),), backend.template, backend.vocabulary)
    request = Request(prompt, "in turn", Sampling(max_new_tokens=20, guidance=guidance), other if guidance else None)
    found = [token for _, token in backend.stream([request])]
    progress, written = Progress("in turn", L, 20), list[int]()
    image = torch.tensor([backend.vocabulary.is_image(i) for i in range(backend.model.config.vocab_size)])
    while not progress.ended:
        with torch.no_grad():
            a, b = (backend.model(torch.tensor([[*p, *written]])).logits[0, -1] for p in (prompt, other))
        can = {"text": backend._text, "image": image, "either": backend._text | image}[progress.next]
        a = a.masked_fill(~can, -torch.inf)
        led = a if guidance is None else b + guidance * (a - b)
        if guidance is not None and progress.next != "image":
            led = led.masked_fill(a.softmax(-1) < 0.1 * a.softmax(-1).max(), -torch.inf)
        written.append(int(led.argmax()))
        progress.take(bool(image[written[-1]]), written[-1] == backend.end_id)
    assert found == written and image[found].any()


def test_the_context_ends_a_response_between_images():
    own = untrained()
    backend = TransformersBackend(own.model, own.vocabulary, own.template, L)
    prompt = prompt_of(backend)
    for room in (1, L - 1, L, 2 * L + 1):
        backend.context = len(prompt) + room
        for seed in range(20):
            tokens = [
                t for _, t in backend.stream([Request(prompt, "in turn", Sampling(9.0, max_new_tokens=99, seed=seed))])
            ]
            assert len(tokens) <= room
            assert all(len(ids) == L for is_image, ids in segments(tokens, backend.vocabulary.is_image, L) if is_image)


def test_a_stop_and_a_penalty_count_text_only():
    backend = tuned()
    prompt = prompt_of(backend)
    (whole,) = backend.generate([Request(prompt, "in turn", Sampling(max_new_tokens=60))])
    (cut,) = backend.generate([Request(prompt, "in turn", Sampling(max_new_tokens=60, stop=("lear",)))])
    assert cut.complete and cut.segments[-1] == "C" and cut.text == whole.text[: whole.text.index("lear")]
    np.testing.assert_array_equal(cut.codes, whole.codes)
    (other,) = backend.generate([Request(prompt, "image", Sampling(repetition_penalty=1e9))])
    (plain,) = backend.generate([Request(prompt, "image")])
    np.testing.assert_array_equal(other.codes, plain.codes)


def test_a_penalty_comes_after_guidance():
    """Otherwise guidance would multiply it."""
    backend = tuned()
    prompt, other = prompt_of(backend), render_prompt((Turn("Say."),), backend.template, backend.vocabulary)
    sampling = Sampling(max_new_tokens=6, guidance=2.0, repetition_penalty=1.3)
    found = [token for _, token in backend.stream([Request(prompt, "text", sampling, other)])]
    written: list[int] = []
    while len(written) < 6 and written[-1:] != [backend.end_id]:
        with torch.no_grad():
            a, b = (backend.model(torch.tensor([[*p, *written]])).logits[0, -1] for p in (prompt, other))
        a = a.masked_fill(~backend._text, -torch.inf)
        led = (b + 2 * (a - b)).masked_fill(a.softmax(-1) < 0.1 * a.softmax(-1).max(), -torch.inf)
        for token in set(written):
            led[token] = led[token] / 1.3 if led[token] > 0 else led[token] * 1.3
        written.append(int(led.argmax()))
    assert found == written
