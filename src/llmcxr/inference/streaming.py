"""Responses as they come: text in whole characters, and images row by row.

Shapes: g codes along one side of an image, r rows that are drawn, S side in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmcxr.inference.grammar import before_stop
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece writes a byte of a character that it has no piece for
_HALF = "\ufffd"  # what a character is read as whose last bytes have not come


@dataclass(frozen=True)
class PartialDrawing:
    """`codes` uint16 [r, g], and `image` float32 [S, S] in [-1, 1], black where nothing is drawn yet."""

    codes: np.ndarray
    image: np.ndarray


def _settled(text: str, stop: Sequence[str]) -> str:
    """The beginning of `text` that stays whatever comes: not half a character, white space that may be the end, or a part
    of what may become a `stop`."""
    text = text.rstrip(_HALF).rstrip()
    held = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    return text[: len(text) - max(held, default=0)].rstrip()


def text_pieces(tokens: Iterable[int], vocabulary: ImageVocabulary, stop: Sequence[str] = ()) -> Iterator[str]:
    """Pieces of the text that a response's tokens, its end token included, make; together they are `Response.text`."""
    ids, given = list[int](), ""
    bytes_from: int | None = None  # a run of such bytes is read as a whole, so that each can change those before it
    for token in tokens:
        if token in vocabulary.control_ids:  # in text, only the end token
            continue
        ids.append(token)
        if not _BYTE.fullmatch(str(vocabulary.tokenizer.convert_ids_to_tokens(token))):
            bytes_from = None
        elif bytes_from is None:
            bytes_from = len(ids) - 1
        text = vocabulary.decode_text(ids[:bytes_from])
        cut = before_stop(text, stop)
        settled = _settled(text, stop) if cut is None else cut
        if len(settled) > len(given):
            yield settled[len(given) :]
            given = settled
    text = vocabulary.decode_text(ids)
    whole = before_stop(text, stop)
    if rest := (text if whole is None else whole)[len(given) :]:
        yield rest


def rows_of_codes(tokens: Iterable[int], vocabulary: ImageVocabulary, g: int) -> Iterator[np.ndarray]:
    """Codes uint16 [r, g] that an image's tokens make so far, after each row."""
    ids: list[int] = []
    for token in tokens:
        ids.append(token)
        if len(ids) % g == 0:
            yield vocabulary.decode_codes(ids).reshape(-1, g)


def filled(codes: np.ndarray) -> np.ndarray:
    """Codes [r, g] to [g, g]: the last row goes on to the bottom, so that the decoder sees no edge where the drawing stops."""
    return np.concatenate([codes, np.repeat(codes[-1:], codes.shape[1] - len(codes), axis=0)])


def without_filling(image: np.ndarray, drawn: float) -> np.ndarray:
    """`image` [S, S] with only the share `drawn` of its rows, black (-1) below: nothing is shown that was not drawn."""
    result = image.copy()
    result[round(drawn * len(image)) :] = -1
    return result
