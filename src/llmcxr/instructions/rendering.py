"""From pieces to token ids and the supervised mask, in one pass (paper, section 2.4.1: only responses are learned).

Shapes: T tokens of an example.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcxr.instructions.example import Cut, Grammar, InstructionExample, Turn
from llmcxr.instructions.templates import Template, without_marks
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

# Punctuation before white space, unless it belongs to a list number ("1. No effusion.") or a title.
_SENTENCE_END = re.compile(r"(?<!\s\d)(?<!^\d)(?<!\bDr)[.!?][\"')\]]?(?=\s)")


@dataclass(frozen=True)
class RenderedExample:
    """`ids` int64 [T]; `supervised` bool [T] marks the tokens that are learned, each response's end token included."""

    ids: np.ndarray
    supervised: np.ndarray
    task: str
    image_id: str = ""
    cut: Cut | None = None  # which text stops at the end of an earlier sentence


def encode_free(text: str, template: Template, vocabulary: ImageVocabulary) -> list[int]:
    """Ids of what a user, a report or the model wrote: in it there is no control token, and nothing that tells turns
    apart."""
    return vocabulary.encode_text(without_marks(text, template.marks))


def _render(turns: tuple[Turn, ...], template: Template, vocabulary: ImageVocabulary) -> tuple[list[int], list[bool]]:
    ids = [*vocabulary.begin_ids]
    supervised = [False] * len(ids)
    for piece in template.pieces(turns):
        if not isinstance(piece.content, str):
            opening, closing = (vocabulary.encode_control(mark) for mark in template.around_image)
            new = [*opening, *vocabulary.encode_codes(piece.content), *closing]
        elif piece.control:
            new = vocabulary.encode_control(piece.content)
        else:
            new = encode_free(piece.content, template, vocabulary)
        mask = [piece.supervised] * len(new)
        if piece.ends_response and new:
            mask[0] = True
        if new and ids and len(ids) == 1 and new[0] == ids[0]:
            new, mask = new[1:], mask[1:]  # a chat template that writes the begin token itself
        ids += new
        supervised += mask
    return ids, supervised


def render(example: InstructionExample, template: Template, vocabulary: ImageVocabulary) -> RenderedExample:
    """Ids and mask of a whole example."""
    if not example.turns:
        return render_plain(example.plain, vocabulary)
    ids, supervised = _render(example.turns, template, vocabulary)
    return RenderedExample(np.asarray(ids), np.asarray(supervised), example.task, example.image_id)


def render_plain(text: str, vocabulary: ImageVocabulary) -> RenderedExample:
    """Text under no template, of which every token after the first is learned (or measured)."""
    ids = np.asarray([*vocabulary.begin_ids, *vocabulary.encode_text(text)], dtype=np.int64)
    return RenderedExample(ids, np.arange(len(ids)) > 0, "language")


def _cut_to(example: InstructionExample, text: str) -> InstructionExample:
    first, last = example.turns[0], example.turns[-1]
    if example.may_cut == "response":
        return replace(example, turns=(*example.turns[:-1], replace(last, response=text)))
    return replace(example, turns=(replace(first, input=text), *example.turns[1:]))


def fit(
    example: InstructionExample, template: Template, vocabulary: ImageVocabulary, max_tokens: int
) -> RenderedExample | None:
    """`render`, in at most `max_tokens` tokens; None where the example cannot be made to fit.

    Only the text that the example says may be cut is, after as many of its sentences as fit (one at least). Where a
    response was cut, its end token stands but is not learned, since the text does not end there.
    """
    whole = render(example, template, vocabulary)
    if len(whole.ids) <= max_tokens:
        return whole
    if example.may_cut is None:
        return None
    text = example.turns[-1].response if example.may_cut == "response" else example.turns[0].input
    assert isinstance(text, str)
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    best, low, high = None, 0, len(ends)  # the first `low` sentences fit, `high` + 1 do not
    while low < high:
        middle = (low + high + 1) // 2
        tried = render(_cut_to(example, text[: ends[middle - 1]]), template, vocabulary)
        if len(tried.ids) <= max_tokens:
            best, low = tried, middle
        else:
            high = middle - 1
    if best is None:
        return None
    supervised = best.supervised.copy()
    if example.may_cut == "response":
        supervised[np.flatnonzero(supervised)[-1]] = False
    return replace(best, supervised=supervised, cut=example.may_cut)


def supervise_all(example: RenderedExample) -> RenderedExample:
    """The same example, with every token after its first learned, but for the end token of a response that was cut."""
    supervised = np.arange(len(example.ids)) > 0
    if example.cut == "response":
        supervised[np.flatnonzero(example.supervised)[-1] + 1] = False
    return replace(example, supervised=supervised)


def render_prompt(
    turns: tuple[Turn, ...], template: Template, vocabulary: ImageVocabulary, grammar: Grammar = "text"
) -> list[int]:
    """Ids up to where the last turn's response (None), of this `grammar`, begins: exactly what training saw there."""
    if turns[-1].response is not None:
        raise ValueError("the last turn already has a response")
    opening = vocabulary.encode_control(template.around_image[0]) if grammar == "image" else []
    return _render(turns, template, vocabulary)[0] + opening


def encode_responses(texts: Sequence[str], template: Template, vocabulary: ImageVocabulary) -> list[list[int]]:
    """Ids of each text as a whole response, its end included, as they follow a prompt."""
    end = response_end(template, vocabulary)
    return [[*encode_free(text, template, vocabulary), *end] for text in texts]


def response_end(template: Template, vocabulary: ImageVocabulary) -> list[int]:
    """Ids that end a text response, as learned: the last of them is the end token, and mostly there is no other."""
    example = render(InstructionExample("", (Turn("a", "", "a"),)), template, vocabulary)
    return example.ids[example.supervised][len(encode_free("a", template, vocabulary)) :].tolist()
