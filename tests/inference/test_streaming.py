"""What streams is the whole response in pieces, and whoever stops listening stops the work."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TOKENIZERS
from hypothesis import example, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from test_policies import CODES, G, S, asker, backend, codec

from llmcxr.inference import transformers_backend
from llmcxr.inference.backend import Sampling
from llmcxr.inference.grammar import before_stop
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.slots import SlotCache
from llmcxr.inference.streaming import text_pieces
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

HELLO = [{"role": "user", "content": "Hello"}]
FREE = Sampling(2.0, max_new_tokens=20, seed=4)


@functools.cache
def vocabulary(name: str) -> ImageVocabulary:
    with tempfile.TemporaryDirectory() as folder:
        return ImageVocabulary.grow(TOKENIZERS[name](Path(folder)), 4)


@functools.cache
def text_ids(name: str) -> list[int]:
    own = vocabulary(name)
    return [i for i in range(len(own.tokenizer)) if i not in own.control_ids and not own.is_image(i)]


def written(own: ImageVocabulary, ids: list[int], stop: tuple[str, ...]) -> tuple[list[int], str]:
    """Tokens as an engine gives them, which ends where a stop stands; and the whole text."""
    for n in range(1, len(ids) + 1):
        if (text := before_stop(own.decode_text(ids[:n]), stop)) is not None:
            return ids[:n], text
    return ids, own.decode_text(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    st.text("aé 😀€\n\u2003中.", max_size=12),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.lists(st.sampled_from(["a", "é", " \n", "\n", "a.", "中😀", "\ufffd", ". a"]), max_size=2).map(tuple),
    st.booleans(),
)
@example("a 😀 ", [], (), True)
@trials(max_examples=60, deadline=None)
def test_pieces_of_a_text_are_the_text(name, text, numbers, stop, first):
    """Characters of several bytes, bytes that are none, white space at the ends, stops that nearly come."""
    own = vocabulary(name)
    drawn = [text_ids(name)[n % len(text_ids(name))] for n in numbers]
    told = own.encode_text(text)
    ids, whole = written(own, told + drawn if first else drawn + told, stop)
    pieces = list(text_pieces(iter([*ids, *sorted(own.control_ids)[:1]]), own, stop))
    assert "".join(pieces) == whole and all(pieces)


def test_a_character_comes_when_its_last_byte_has():
    own, taken = vocabulary("bytes"), list[int]()
    ids = own.encode_text("😀é")
    assert len(ids) == 6, "a token a byte"
    pieces = text_pieces((taken.append(i) or i for i in ids), own)
    assert [(piece, len(taken)) for piece in pieces] == [("😀", 4), ("é", 6)]


def test_bytes_of_sentencepiece_wait_for_the_next_piece():
    """One more byte, and none of the run would be a character."""
    own, taken = vocabulary("llama"), list[int]()
    ids = own.encode_text("😀 The")
    pieces = text_pieces((taken.append(i) or i for i in ids), own)
    assert next(pieces).startswith("😀") and taken == ids[:6]
    assert own.decode_text([*ids[:5], ids[2]]).count("\ufffd") == 5


def model() -> LlmCxr:
    return LlmCxr(asker(unguided_share=0.1, max_tokens=500), codec())  # type: ignore[arg-type]


def test_streams_are_the_responses():
    own, image = model(), CODES[0]
    for sampling in (FREE, Sampling(max_new_tokens=9), Sampling(2.0, max_new_tokens=20, stop=("a", "e"))):
        assert "".join(own.stream_report(image, sampling)) == own.report(image, sampling, candidates=1)
        assert "".join(own.stream_ask(image, "Is it?", sampling)) == own.ask(image, "Is it?", sampling)
        assert "".join(own.stream_chat(HELLO, sampling)) == own.chat(HELLO, sampling)
    guided = Sampling(1.0, max_new_tokens=9, guidance=2.0)
    assert "".join(own.stream_report(image, guided)) == own.report(image, guided, candidates=1)
    for sampling in (Sampling(1.0, seed=2), guided):
        steps = list(own.stream_draw("Left effusion.", sampling))
        assert [len(step.codes) for step in steps] == [1, 2, 3, 4]
        for before, after in zip(steps, steps[1:], strict=False):
            np.testing.assert_array_equal(after.codes[: len(before.codes)], before.codes)
        assert steps[-1].codes.shape == (G, G) and steps[-1].codes.dtype == np.uint16
        whole = own.draw("Left effusion.", sampling, candidates=1)
        np.testing.assert_array_equal(steps[-1].image, whole)
        for r, step in enumerate(
            steps, 1
        ):  # of blocks as bright as their codes: what is drawn is final, the rest black
            np.testing.assert_array_equal(step.image[: r * S // G], whole[: r * S // G])
            assert (step.image[r * S // G :] == -1).all()


@pytest.mark.parametrize(
    "start",
    [
        lambda own: own.stream_report(CODES[0], FREE),
        lambda own: own.stream_ask(CODES[0], "Is it?", FREE),
        lambda own: own.stream_chat(HELLO, FREE),
        lambda own: own.stream_draw("Left effusion.", Sampling(1.0)),
    ],
)
def test_a_closed_stream_stops_the_engine(start, monkeypatch):
    """No step is made after it, and the engine itself is closed at once, not when its memory is collected."""
    steps, closed = [0], []
    begin, stream = SlotCache.begin_step, transformers_backend.TransformersBackend.stream

    def counted(self):
        steps[0] += 1
        return begin(self)

    def watched(self, requests):
        try:
            yield from stream(self, requests)
        except GeneratorExit:
            closed.append(steps[0])
            raise

    whole, own = [0], model()
    monkeypatch.setattr(SlotCache, "begin_step", counted)
    list(start(own))
    whole, steps[0] = steps[0], 0
    monkeypatch.setattr(type(backend()), "stream", watched)
    pieces = start(own)
    next(pieces)
    at, kept = steps[0], pieces  # still referred to: only `close` can have ended it
    kept.close()
    assert closed == [at] and steps[0] == at < whole
    assert list(kept) == []
