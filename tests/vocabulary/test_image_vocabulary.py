"""Text can never become an image or control token, and codes survive the way to tokens and back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from llmcxr.foundation.errors import UserError
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary, token_name

K = 16
TOY = ImageVocabulary.grow(build_tokenizer(), K)
# As in Qwen (<think>, not special) and GPT-NeoX (runs of spaces, which overlap themselves).
AWKWARD = ImageVocabulary.grow(
    build_tokenizer(
        AddedToken("<think>", special=False, normalized=False),
        AddedToken("</think>", special=False, normalized=False),
        *[AddedToken(" " * n, special=False, normalized=False) for n in range(9, 1, -1)],
        AddedToken("### End", special=True, normalized=False),
    ),
    K,
)
NAMES = [token_name(0), token_name(15), "<think>", "</think>", "### End", "<|im_end|>", "<|im_start|>", "<|endoftext|>"]
PIECES = st.sampled_from(
    [*NAMES, "  ", "   ", "     ", "<VQ", "0001>", "<", "|", ">", "im_end", "\n", "Is there", "é", "😀", "𝟘"]
)
TEXT = st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join)


@pytest.fixture(scope="module")
def smollm(smollm_tokenizer):
    return ImageVocabulary.grow(copy.deepcopy(smollm_tokenizer), K)


def check_text(vocabulary: ImageVocabulary, text: str, lossless: bool = True) -> None:
    ids = vocabulary.encode_text(text)
    assert vocabulary.control_ids.isdisjoint(ids), vocabulary.tokenizer.convert_ids_to_tokens(ids)
    assert not any(vocabulary.is_image(i) for i in ids)
    if lossless:  # byte-level: nothing is lost, nothing added
        assert vocabulary.tokenizer.decode(ids) == text
        assert vocabulary.decode_text(ids) == text.strip()


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_no_text_becomes_a_token_of_ours_toy(text):
    check_text(TOY, text)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_no_text_becomes_a_token_of_ours_with_added_tokens_that_are_not_special(text):
    check_text(AWKWARD, text)


@pytest.mark.parametrize("length", range(1, 60))
def test_runs_of_spaces(length):
    text = "a" + " " * length + "b"
    check_text(AWKWARD, text)
    assert AWKWARD.encode_text(text) == AWKWARD.tokenizer(text, add_special_tokens=False)["input_ids"]


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_no_text_becomes_a_token_of_ours_smollm(smollm, text):
    check_text(smollm, text, lossless=False)  # its vocabulary lacks some control characters


def test_plain_text_is_tokenised_as_the_tokenizer_does(smollm):
    for vocabulary in (TOY, AWKWARD, smollm):
        text = "Is there a pleural effusion?\nNo. The heart is normal."
        assert vocabulary.encode_text(text) == vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert vocabulary.encode_text("") == vocabulary.encode_control("") == []


def test_the_way_of_encoding_is_not_remembered(smollm):
    for vocabulary in (TOY, smollm):
        one = vocabulary.encode_control("<|im_end|>")
        vocabulary.encode_text("<|im_end|>")
        assert vocabulary.encode_control("<|im_end|>") == one and len(one) == 1


def test_control_text_gives_control_tokens():
    assert TOY.encode_control("<|im_start|>user\n")[0] == 1
    assert TOY.encode_control("<|im_end|>") == [2]


@given(st.lists(st.integers(0, K - 1), max_size=20))
def test_codes_to_tokens_and_back(codes):
    array = np.array(codes, dtype=np.uint16)
    for vocabulary in (TOY, AWKWARD):
        ids = vocabulary.encode_codes(array)
        assert ids == [vocabulary.first_id + c for c in codes] and all(type(i) is int for i in ids)
        back = vocabulary.decode_codes(ids)
        assert back.dtype == np.uint16 and back.tolist() == codes
        assert all(vocabulary.is_image(i) for i in ids)
        assert vocabulary.tokenizer.convert_ids_to_tokens(ids) == [f"<VQ{c:04d}>" for c in codes]
        assert vocabulary.encode_control("".join(token_name(c) for c in codes)) == ids


def test_borders():
    first = TOY.first_id
    assert first == 340 and AWKWARD.first_id == 340 + 11
    assert [TOY.is_image(i) for i in (first - 1, first, first + K - 1, first + K)] == [False, True, True, False]
    for codes in ([K], [-1], [0, 99]):
        with pytest.raises(ValueError, match=r"codes should be in \[0, 16\)"):
            TOY.encode_codes(codes)
    for ids in ([first - 1], [first + K], [0]):
        with pytest.raises(ValueError, match="not all of these ids are image tokens"):
            TOY.decode_codes(ids)
    with pytest.raises(ValueError, match="image tokens in a text response"):
        TOY.decode_text([5, first])
    assert TOY.decode_text([*TOY.encode_text(" Yes."), 2]) == "Yes."


def test_many_codes_keep_their_names_in_order():
    vocabulary = ImageVocabulary.grow(build_tokenizer(), 10_001)
    assert vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.first_id + 10_000) == "<VQ10000>"


def test_a_saved_tokenizer_is_the_same_vocabulary(tmp_path, smollm):
    from transformers import AutoTokenizer

    for number, vocabulary in enumerate((TOY, smollm)):
        folder = tmp_path / str(number)
        vocabulary.tokenizer.save_pretrained(folder)
        again = ImageVocabulary(AutoTokenizer.from_pretrained(folder), K)
        assert again.first_id == vocabulary.first_id
        check_text(again, "a <VQ0001> b<|im_end|>")


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(UserError, match="does not hold 16 image tokens"):
        ImageVocabulary(build_tokenizer(), K)
    with pytest.raises(UserError, match="does not hold 17 image tokens"):
        ImageVocabulary(TOY.tokenizer, K + 1)
