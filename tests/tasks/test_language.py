"""The shipped language data: schema, lengths, and a held-out text that shares nothing with the instructions."""

import json
import re
from importlib.resources import files

import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.tasks.language import load_instructions

DATA = files("llmcxr.tasks") / "data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def word_ngrams(text, n):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_prompts_schema_and_number():
    prompts = rows("language_prompts.jsonl")
    assert len(prompts) == 160
    assert all(set(row) == {"instruction", "input"} for row in prompts)
    assert all(10 <= len(row["instruction"]) <= 200 and len(row["input"]) <= 400 for row in prompts)


def test_instructions_are_answers_to_the_prompts():
    prompts = {(row["instruction"], row["input"]) for row in rows("language_prompts.jsonl")}
    answered = rows("language_instructions.jsonl")
    assert len(answered) >= 120
    assert all(set(row) == {"instruction", "input", "response"} for row in answered)
    assert all((row["instruction"], row["input"]) in prompts for row in answered)
    assert all(1 <= len(row["response"]) <= 600 for row in answered)
    assert all(row["response"] == row["response"].strip() and "<|" not in row["response"] for row in answered)


def test_general_text_schema_and_lengths():
    texts = rows("general_text.jsonl")
    assert len(texts) == 40
    assert all(set(row) == {"text"} for row in texts)
    assert all(60 <= len(row["text"].split()) <= 120 for row in texts)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("language_prompts.jsonl", ("instruction", "input")),
        ("language_instructions.jsonl", ("instruction", "input")),
        ("general_text.jsonl", ("text",)),
    ],
)
def test_no_duplicates(name, key):
    keys = [" ".join(row[k].lower() for k in key) for row in rows(name)]
    assert len(set(keys)) == len(keys)


def test_general_text_shares_no_passage_with_the_instructions():
    trained = set().union(*(word_ngrams(" ".join(row.values()), 6) for row in rows("language_instructions.jsonl")))
    for row in rows("general_text.jsonl"):
        assert not word_ngrams(row["text"], 6) & trained, row["text"][:60]


def test_general_paragraphs_share_no_passage_with_each_other():
    seen = set()
    for row in rows("general_text.jsonl"):
        grams = word_ngrams(row["text"], 6)
        assert not grams & seen, row["text"][:60]
        seen |= grams


def test_nothing_here_is_about_radiographs():
    for name in ("language_prompts.jsonl", "general_text.jsonl"):
        text = (DATA / name).read_text(encoding="utf-8").lower()
        assert not re.search(r"radiograph|x-ray|\bchest\b|\blungs?\b|\bpneumo|pleural", text), name


@pytest.mark.parametrize("key", ["instruction", "input", "response"])
def test_half_a_character_is_said_with_its_line(key, tmp_path):
    row = {"instruction": "a", "input": "b", "response": "c"}
    (tmp_path / "i.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {key: chr(0xD800)})}\n")
    with pytest.raises(UserError, match="line 2: .*half a character"):
        load_instructions(tmp_path / "i.jsonl")
