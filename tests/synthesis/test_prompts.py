"""The prompts that are shipped, and those of users."""

from __future__ import annotations

import json

import pytest
import yaml

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.registry import build_labeller
from llmcxr.synthesis.checks import check_pairs
from llmcxr.synthesis.pairs import QaPair
from llmcxr.synthesis.parsing import parse_pairs
from llmcxr.synthesis.prompts import rewriting_prompt, vqa_prompt
from llmcxr.synthesis.rewriting import fault_of


def test_the_examples_of_the_prompt_pass_its_checks():
    """The LLM imitates them, so each must be what is kept, of a report that says so."""
    for report, answer in vqa_prompt().before:
        pairs = parse_pairs(answer).pairs
        assert len(pairs) >= 3 and all(pair.evidence in report for pair in pairs)
        own = [QaPair("i", "s", p.question, p.answer, p.type, "llm", p.evidence) for p in pairs]
        assert [(p.verdict, p.reason) for p in check_pairs(report, own) if not p.kept] == []


def test_the_examples_of_rewriting_pass_its_checks():
    labeller = build_labeller("rules")
    for sentence, answer in rewriting_prompt().before:
        text = json.loads(answer)["text"]
        assert fault_of(sentence, text, labeller) == "" if text else not labeller.read(sentence).states


def test_requests_share_their_beginning():
    one, two = (vqa_prompt().request(text).messages for text in ("Clear lungs.", "Small effusion."))
    assert one[:-1] == two[:-1] and one[-1] == {"role": "user", "content": "Report: Clear lungs."}
    assert [m["role"] for m in one] == ["user", "assistant"] * (len(one) // 2) + ["user"]
    assert one[0]["content"].startswith("You write questions")


def test_a_prompt_without_examples_keeps_its_instructions(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own-1", "instructions": "Ask."}))
    prompt = vqa_prompt(path)
    assert prompt.request("Clear.").messages == ({"role": "user", "content": "Ask.\n\nReport: Clear."},)
    assert prompt.name == "own-1" and prompt.version != vqa_prompt().version


@pytest.mark.parametrize(
    "value",
    [
        None, [], {"name": "x"}, {"name": "x", "instructions": ""}, {"name": 3, "instructions": "Ask."},
        {"name": "x", "instructions": "Ask.", "examples": [{"report": "Clear."}]},
        {"name": "x", "instructions": "Ask.", "examples": [{"report": "Clear.", "pairs": [{"question": "Is it?"}]}]},
        {"name": "x", "instructions": "Ask.", "examples": 3},
    ],
)  # fmt: skip
def test_what_is_no_prompt(value, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(UserError, match="own.yaml"):
        vqa_prompt(tmp_path / "own.yaml")
