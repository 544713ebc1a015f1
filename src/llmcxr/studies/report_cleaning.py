"""The text of a report as it is kept: without line breaks, with one mark for what de-identification removed."""

from __future__ import annotations

import re

BLANK = "___"  # MIMIC-CXR's mark for removed text; every other mark is turned into it

_BRACKET = re.compile(r"\[\*\*|\*\*\]")
_BLANKS = re.compile(r"_*(?<![A-Za-z])[Xx]{4,}(?![A-Za-z])_*|_{2,}")
_BLANK_RUN = re.compile(rf"{BLANK}(?:[\s_]*{BLANK})+")
# What programs write into a cell without a value, in lower case.
EMPTY_CELLS = frozenset(["", "nan", "none", "null", "na", "n/a", "n.a.", "<na>", "nat", "-", "--"])
_NO_TEXT = EMPTY_CELLS | {
    "n.a",
    "<na",
    "nil",
    "no report",
    "not available",
    "unknown",
    "empty",
}  # without marks at the ends


def clean_text(text: str) -> str:
    """Join wrapped lines, collapse white space, and write every run of de-identification blanks as one `___`.

    Idempotent, and linear in the length. Words are never changed, and removed only inside [**...**].
    """
    joined = " ".join(text.split())
    if "**" in joined:
        joined = _without_brackets(joined)
    return _BLANK_RUN.sub(BLANK, _BLANKS.sub(BLANK, joined))


def _without_brackets(text: str) -> str:
    """[**...**], however nested, as a blank; a bracket without its partner stays. One pass: such texts can be long."""
    spans: list[tuple[int, int]] = []  # outermost pairs so far
    opened: list[int] = []
    for mark in _BRACKET.finditer(text):
        if mark[0] == "[**":
            opened.append(mark.start())
        elif opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, mark.end()))
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span[0]], BLANK]
        end = span[1]
    return "".join([*parts, text[end:]])


def is_no_text(text: str) -> bool:
    """Whether a cell or section says nothing: empty, "nan", "None", "N/A", only blanks or punctuation."""
    plain = text.strip().casefold().strip(" .,;:-_?*>()[]\"'")
    return plain in _NO_TEXT or not any(c.isalnum() for c in clean_text(plain).replace(BLANK, ""))
