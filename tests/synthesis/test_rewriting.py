"""Sentences rewritten without their comparison, and what is not accepted of them."""

from __future__ import annotations

import json

import pytest
from chat_servers import completion, failure, front

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.registry import build_labeller
from llmcxr.studies.prior_references import edit_prior_references
from llmcxr.studies.study import Study
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.rewriting import NOTHING_LEFT, REWRITTEN, Rewriter, fault_of
from llmcxr.synthesis.settings import BudgetSettings, ChatSettings

LABELLER = build_labeller("rules")
OLD = "Moderate right pleural effusion is unchanged since the prior study."


@pytest.mark.parametrize(
    ("sentence", "rewritten", "fault"),
    [
        (OLD, "Moderate right pleural effusion.", ""),
        (OLD, "There is a moderate right pleural effusion.", ""),
        ("No new consolidation is seen.", "No consolidation is seen.", ""),
        (OLD, "Moderate right pleural effusion is stable.", "still refers to an earlier study"),
        (OLD, "Moderate right pleural effusion. It is again seen.", "still refers to an earlier study"),
        (OLD, "Moderate right pleural effusion and pneumothorax.", "adds a finding"),
        (OLD, "Moderate right study.", "loses a finding"),
        (OLD, "No moderate right pleural effusion.", "changes whether a finding is there"),
        (OLD, "Moderate left pleural effusion.", "changes the side of a finding"),
        (OLD, "Moderate pleural effusion.", "changes the side of a finding"),
        (OLD, "Large right pleural effusion.", "adds words"),
        (OLD, "Moderate right pleural effusion of 3 cm.", "adds words"),
        ("No new cyst is seen.", "Cyst is seen.", "denies what was not denied, or the other way round"),
        ("The cyst is unchanged.", "No cyst.", "denies what was not denied, or the other way round"),
    ],
)
def test_faults(sentence, rewritten, fault):
    assert fault_of(sentence, rewritten, LABELLER) == fault


SAYS = {
    OLD: "Moderate right pleural effusion.",
    "The pneumothorax has resolved since yesterday.": "Large pneumothorax.",
    "Comparison is made to the prior film.": "",
    "The cardiomegaly is unchanged.": "",
}


def studies(*texts: str) -> list[Study]:
    return [Study(f"i{k}", f"p{k}", f"s{k}", "", "train", findings_text=text) for k, text in enumerate(texts)]


def answered(number, body):
    sentence = body["messages"][-1]["content"].removeprefix("Sentence: ")
    if sentence not in SAYS:
        return failure(400, "refused")
    return completion(json.dumps({"text": SAYS[sentence]}))


def rewriter(url, tmp_path, **budget) -> Rewriter:
    settings = ChatSettings(base_url=url, model="m", budget=BudgetSettings(**budget))
    return Rewriter(ChatClient(settings), LABELLER, tmp_path / "rewriting.jsonl")


def test_sentences_are_rewritten_or_dropped_and_counted(tmp_path):
    reports = studies(
        f"The lungs are clear. {OLD} No fracture.",
        f"{OLD} The pneumothorax has resolved since yesterday. Heart size is normal.",
        "Comparison is made to the prior film. The cardiomegaly is unchanged.",
        "No pneumothorax.",
        "Edema is unchanged.",
    )
    with front(answered) as server:
        one = rewriter(server.url, tmp_path)
        edited, counts = edit_prior_references(reports, "rewrite", one)
        assert [s.findings_text for s in edited] == [
            "The lungs are clear. Moderate right pleural effusion. No fracture.",
            "Moderate right pleural effusion. Heart size is normal.",
            "",
            "No pneumothorax.",
            "",
        ]
        assert one.counts[REWRITTEN] == 2 and one.counts[NOTHING_LEFT] == 1
        assert one.counts["dropped: loses a finding"] == 1 and one.counts["dropped: no answer"] == 1
        assert sum(one.counts.values()) == counts.sentences == 6 and counts.emptied == 2
        counts.rewriting = one.counts
        assert "2 rewritten" in counts.said("rewrite") and counts.as_json()["rewriting"][REWRITTEN] == 2
        assert len(server.bodies) == 5  # each wording once
        again = rewriter(server.url, tmp_path)
        assert edit_prior_references(reports, "rewrite", again)[0] == edited
        assert len(server.bodies) == 6  # the failure alone


def test_a_budget_that_does_not_suffice_is_said_and_goes_on(tmp_path):
    with front(answered) as server:
        with pytest.raises(UserError, match="after 2 of 3 sentences: chat.budget.requests 2"):
            rewriter(server.url, tmp_path, requests=2)([" ".join(list(SAYS)[:3])])
        rewriter(server.url, tmp_path, requests=3)([" ".join(list(SAYS)[:3])])
        assert len(server.bodies) == 3


def test_talk_instead_of_an_answer_drops_the_sentence(tmp_path):
    replies = ["Sure, here it is: moderate right pleural effusion.", '{"text": 3}', "{", '{"sentence": "x"}', ""]
    with front(lambda number, body: completion(replies[number])) as server:
        for k in range(len(replies)):
            one = Rewriter(ChatClient(ChatSettings(base_url=server.url, model=f"m{k}")), LABELLER, tmp_path / "r.jsonl")
            assert one([OLD]) == [""] and dict(one.counts) == {"dropped: no answer": 1}
