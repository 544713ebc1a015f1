"""Pairs out of whatever a chat LLM wraps them in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.synthesis.parsing import Parsed, RawPair, parse_pairs

ONE = {"question": "Is there an effusion?", "answer": "Yes.", "type": "presence", "evidence": "Small effusion."}
TWO = {"question": "On which side?", "answer": "Left.", "type": "location", "evidence": "Left effusion."}
PAIRS = (RawPair(**ONE), RawPair(**TWO))
WHOLE = json.dumps({"pairs": [ONE, TWO]})


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        json.dumps({"pairs": [ONE, TWO]}, indent=2),
        f"```json\n{WHOLE}\n```",
        f"Sure! Here are the pairs:\n\n```\n{WHOLE}\n```\nLet me know if {{you}} need more.",
        json.dumps([ONE, TWO]),
        f"{json.dumps(ONE)}\n{json.dumps(TWO)}",
        json.dumps({"Pairs": [{" Question ": ONE["question"], "ANSWER": "Yes.", "Type": "Presence",
                               "evidence": ONE["evidence"], "difficulty": 3}, TWO]}),
        json.dumps({"result": [ONE], "more": [TWO]}),
        "<think>They want {JSON}.</think>" + WHOLE,
    ],
    ids=["plain", "indented", "fenced", "prose", "list", "lines", "spelling", "two lists", "thinking"],
)  # fmt: skip
def test_wrappings(text):
    assert parse_pairs(text).pairs == PAIRS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Parsed(())),
        ("There is no JSON here.", Parsed(())),
        ("[]", Parsed(())),
        ('{"pairs": []}', Parsed(())),
        ('{"pairs": [{"question": "Is it?"}]}', Parsed((), 1)),
        ('{"pairs": ["Is it?", {"question": "", "answer": "Yes."}, null]}', Parsed((), 3)),
        ('{"pairs": [{"question": "How many?", "answer": 2}]}', Parsed((RawPair("How many?", "2"),))),
        ('{"pairs": [{"question": "Is it?", "answer": false}]}', Parsed((RawPair("Is it?", "No."),))),
        ('{"pairs": [{"question": " Is\\n it? ", "answer": "Yes."}]}', Parsed((RawPair("Is it?", "Yes."),))),
        ('{"pairs": [{"question": "Is it?", "answer": ["Yes."]}]}', Parsed((), 1)),
        ('{"pairs": "none"}', Parsed((), 1)),
    ],
)
def test_what_is_none(text, expected):
    assert parse_pairs(text) == expected


def test_a_cut_answer_gives_the_pairs_that_are_whole():
    """Wherever it is cut: exactly those whose object has ended."""
    ends = [WHOLE.index("}") + 1, WHOLE.index("}", WHOLE.index("}") + 1) + 1]
    for cut in range(1, len(WHOLE)):
        parsed = parse_pairs(WHOLE[:cut])
        assert parsed.pairs == PAIRS[: sum(end <= cut for end in ends)], cut
        assert parsed.broken


TEXT = st.text(st.characters(codec="utf-8")).map(lambda text: " ".join(text.split())).filter(bool)


@given(st.lists(st.builds(RawPair, TEXT, TEXT), max_size=5), TEXT, st.booleans())
def test_what_is_written_is_read(pairs, prose, fenced):
    """Round trip, through any text without brackets around."""
    prose = prose.replace("{", "(").replace("}", ")")
    text = json.dumps({"pairs": [{"question": p.question, "answer": p.answer} for p in pairs]})
    assert parse_pairs(f"{prose}\n```json\n{text}\n```" if fenced else text).pairs == tuple(pairs)


@given(st.text() | st.text('{}[]":,ab \\tn0.-'))
def test_never_raises(text):
    parsed = parse_pairs(text)
    assert all(pair.question and pair.answer for pair in parsed.pairs)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000,
        '{"a":' * 100_000,
        "[" * 200_000,
        '{"pairs": [' + '{"question": "' * 50_000,
        '{"question": "Is it?", "answer": ' + "9" * 50_000 + "}",
    ],
    ids=["brackets", "nested", "lists", "open", "number"],
)
def test_hostile_answers_take_no_time(text):
    assert parse_pairs(text).pairs == ()


def test_lone_surrogates_become_characters():
    (pair,) = parse_pairs('{"question": "Is it \\ud800?", "answer": "Yes."}').pairs
    pair.question.encode()
