"""From pieces to token ids and the supervised mask, in one pass (paper, section 2.4.1: only responses are learned).

Shapes: T tokens of an example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmcxr.instructions.example import InstructionExample, Task, Turn
from llmcxr.instructions.templates import Template
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary


@dataclass(frozen=True)
class RenderedExample:
    """`ids` int64 [T]; `supervised` bool [T] marks the tokens that are learned, each response's end token included."""

    ids: np.ndarray
    supervised: np.ndarray
    task: Task
    image_id: str = ""


def _render(turns: tuple[Turn, ...], template: Template, vocabulary: ImageVocabulary) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    supervised: list[bool] = []
    if (bos := vocabulary.tokenizer.bos_token_id) is not None and _starts_with_bos(vocabulary):
        ids.append(bos)
        supervised.append(False)
    for piece in template.pieces(turns):
        if not isinstance(piece.content, str):
            new = vocabulary.encode_codes(piece.content)
        elif piece.control:
            new = vocabulary.encode_control(piece.content)
        else:
            new = vocabulary.encode_text(piece.content)
        mask = [piece.supervised] * len(new)
        if piece.ends_response and new:
            mask[0] = True
        if new and ids and len(ids) == 1 and new[0] == ids[0]:
            new, mask = new[1:], mask[1:]  # a chat template that writes the begin token itself
        ids += new
        supervised += mask
    return ids, supervised


def _starts_with_bos(vocabulary: ImageVocabulary) -> bool:
    """Whether the tokenizer puts a begin token before a text by itself (Llama, Gemma: yes; SmolLM2, GPT-NeoX: no)."""
    return vocabulary.tokenizer("a")["input_ids"][:1] == [vocabulary.tokenizer.bos_token_id]


def render(example: InstructionExample, template: Template, vocabulary: ImageVocabulary) -> RenderedExample:
    """Ids and mask of a whole example."""
    ids, supervised = _render(example.turns, template, vocabulary)
    return RenderedExample(np.asarray(ids), np.asarray(supervised), example.task, example.image_id)


def render_prompt(turns: tuple[Turn, ...], template: Template, vocabulary: ImageVocabulary) -> list[int]:
    """Ids up to where the last turn's response (None) begins: exactly what training saw there."""
    if turns[-1].response is not None:
        raise ValueError("the last turn already has a response")
    return _render(turns, template, vocabulary)[0]
