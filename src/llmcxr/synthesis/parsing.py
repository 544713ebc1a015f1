"""Question-answer pairs out of what a chat LLM wrote, however it wrapped them.

A server that follows the JSON schema gives {"pairs": [{"question", "answer", "type", "evidence"}, ...]}. Others put prose
or code fences around it, leave out the outer object, or are cut off in the middle: every object that is whole and has a
question and an answer is taken, wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MOST = 100_000  # characters that are looked at; an answer of 1,000 tokens has some 5,000
_TRIES = 1_000  # opening brackets that turn out to open nothing whole
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class RawPair:
    """A question and its answer as the LLM wrote them, without white space around. `type` and `evidence` (a sentence of
    the report) are what it says of them, "" where it does not."""

    question: str
    answer: str
    type: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer holds. `incomplete`: objects that lack a question or an answer; `broken`: JSON that does not end."""

    pairs: tuple[RawPair, ...]
    incomplete: int = 0
    broken: bool = False


def parse_pairs(text: str) -> Parsed:
    """The pairs in an answer, in order. Never raises."""
    pairs, incomplete = list[RawPair](), 0
    values, broken = _values(text[:_MOST])
    for value in values:
        for entry in _objects(value):
            pair = _pair(entry)
            if pair is not None:
                pairs.append(pair)
            else:
                incomplete += 1
    return Parsed(tuple(pairs), incomplete, broken or len(text) > _MOST)


def _values(text: str) -> tuple[list[Any], bool]:
    """The whole JSON objects in a text, outermost first, and whether one began that does not end."""
    values, at, tries, broken = list[Any](), text.find("{"), 0, False
    while at >= 0 and tries < _TRIES:
        try:
            value, end = _DECODER.raw_decode(text, at)
            values.append(value)
        except (ValueError, RecursionError):
            tries, end, broken = tries + 1, at + 1, True
        at = text.find("{", end)
    return values, broken


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects that should be pairs: the value itself, or those of a list in it."""
    if not isinstance(value, dict):
        return
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if lists and not _has(value, "question"):
        for inner in lists:
            yield from (entry if isinstance(entry, dict) else {} for entry in inner)
    elif value:
        yield value


def _has(value: dict[str, Any], name: str) -> bool:
    return any(key.strip().lower() == name for key in value)


def _pair(entry: dict[str, Any]) -> RawPair | None:
    """A pair with its question and answer as text of one line; None where one is missing."""
    own = {key.strip().lower(): _text(value) for key, value in entry.items()}
    if not own.get("question") or not own.get("answer"):
        return None
    return RawPair(own["question"], own["answer"], own.get("type", "").lower(), own.get("evidence", ""))


def _text(value: Any) -> str:
    if isinstance(value, bool):  # to a question of yes and no
        return "Yes." if value else "No."
    if isinstance(value, int | float | str):
        try:
            return " ".join(str(value).encode("utf-8", "replace").decode().split())
        except ValueError:  # a number of more than 4,300 digits
            return ""
    return ""
