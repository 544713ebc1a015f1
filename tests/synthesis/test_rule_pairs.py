"""Pairs by rules: from labels and reports, never from silence; as balanced as they can be; and none that checks reject."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from llmcxr.instructions.questions import LIST_QUESTION
from llmcxr.labelling.registry import build_labeller
from llmcxr.studies.findings import Finding
from llmcxr.studies.study import Study, known_findings
from llmcxr.synthesis.checks import check_pairs
from llmcxr.synthesis.gather import gather
from llmcxr.synthesis.rules import DEVICE_QUESTION, rule_pairs

RULES = build_labeller("rules")
CASES = [json.loads(line) for line in (Path(__file__).parent / "cases" / "reports.jsonl").open()]
REPORT = (
    "Moderate right pleural effusion. Pacemaker on the left. Patchy opacity in the left lower lobe. No pneumothorax. "
    "Possible nodule."
)


def study(k: int = 0, text: str = "", labels: dict[str, int] | None = None, truth=()) -> Study:
    return Study(f"i{k}", f"p{k}", f"s{k}", "", "train", findings_text=text, labels=labels or {}, truth=tuple(truth))


def test_pairs_of_one_report_by_hand():
    found = {
        p.question: (p.answer, p.type, p.evidence) for p in rule_pairs(study(text=REPORT), RULES.read(REPORT).states)
    }
    first = "Moderate right pleural effusion."
    assert found == {
        "Is this chest radiograph normal?": ("No.", "normal", first),
        "Is there a pleural effusion?": ("Yes.", "presence", first),
        "Is there a left pleural effusion?": ("No.", "presence", first),
        "Is there a right pleural effusion?": ("Yes.", "presence", first),
        "On which side is the pleural effusion?": ("Right.", "location", first),
        "How severe is the pleural effusion: mild, moderate or severe?": ("Moderate.", "severity", first),
        "Is there an opacity?": ("Yes.", "presence", "Patchy opacity in the left lower lobe."),
        "Is there a left opacity?": ("Yes.", "presence", "Patchy opacity in the left lower lobe."),
        "Is there a right opacity?": ("No.", "presence", "Patchy opacity in the left lower lobe."),
        "On which side is the opacity?": ("Left.", "location", "Patchy opacity in the left lower lobe."),
        "Where in the chest is the opacity?": (
            "Left lower lobe.",
            "location",
            "Patchy opacity in the left lower lobe.",
        ),
        "Is there a pneumothorax?": ("No.", "presence", "No pneumothorax."),
        "Is there a support device?": ("Yes.", "presence", "Pacemaker on the left."),
        "On which side is the support device?": ("Left.", "location", "Pacemaker on the left."),
        "Is there a pacemaker?": ("Yes.", "presence", "Pacemaker on the left."),
        DEVICE_QUESTION: ("Pacemaker.", "device", "Pacemaker on the left."),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["report"][:40])
def test_checks_agree_with_what_rules_read(case):
    states = RULES.read(case["report"]).states
    pairs = rule_pairs(study(text=case["report"]), states)
    assert pairs or not {0, 1} & set(states.values())
    wrong = [p for p in check_pairs(case["report"], pairs) if p.reason == "contradicted"]
    # "no consolidation" is a label of "no opacity", beside "reticular opacities" in the report's own words
    assert [p for p in wrong if (p.finding, p.answer) != ("opacity", "No.")] == []
    other = {"Yes.": "No.", "No.": "Yes.", "Left.": "Right.", "Right.": "Left.", "Mild.": "Severe.", "Severe.": "Mild."}
    for pair in pairs:
        if pair.answer in other and pair.verdict == "entailed" and pair.evidence:
            wrong = pair.__class__("i", "s", pair.question, other[pair.answer], pair.type, "llm")
            # "no consolidation" is a label of "no opacity", but the report leaves others open
            allowed = {"contradicted"} if pair.finding != "opacity" else {"contradicted", ""}
            assert check_pairs(case["report"], [wrong])[0].reason in allowed, pair


@pytest.mark.parametrize(
    "text, labels, wanted",
    [
        ("Small right effusion. Heart enlarged.", None, "Cardiomegaly; right pleural effusion."),
        ("Left and right effusions. Low lung volumes.", None, "Hypoinflation; bilateral pleural effusion."),
        ("The chest is normal.", None, "No abnormal finding."),
        ("The heart is normal in size.", None, None),  # and the lungs?
        ("Cardiomegaly. Possible nodule.", None, None),  # in doubt
        ("Findings consistent with pneumonia.", {"Pneumonia": 1, "COVID": 0}, "Pneumonia."),
        ("Pneumonia and a large effusion.", {"Pneumonia": 1, "COVID": 0}, None),  # the data have no effusion
        ("Pneumonia, an effusion.", {"Pneumonia": 1, "Pleural_Effusion": 1}, "Pleural Effusion; Pneumonia."),
        ("As expected.", {"COVID": 1}, "COVID."),  # what no rule can read is told by its label
        ("", {"Pneumonia": 1}, None),  # who knows what else there is
    ],
)
def test_all_findings_are_listed_where_nothing_is_left_in_doubt(text, labels, wanted):
    known = RULES.read(text).states if labels is None else labels
    pairs = [p for p in rule_pairs(study(text=text), known) if p.question == LIST_QUESTION]
    assert [p.answer for p in pairs] == ([] if wanted is None else [wanted])
    assert all(p.as_question().kind == "list" and p.type == "open" for p in pairs)
    assert all(p.kept for p in check_pairs(text, pairs, known))


def test_labels_alone_give_presence_and_uncertain_ones_nothing():
    studies = [study(k, labels={"Nodule": k % 2, "mass": -1, "No Finding": k % 2}) for k in range(50)]
    studies += [study(50 + k, labels={"opacity": k % 2}) for k in range(50)]
    questions = list(gather(studies, ["rules"], RULES, 0))
    labels = {s.image_id: s.labels for s in studies}
    asked = [q for q in questions if q.kind == "presence"]
    assert {q.finding for q in asked} == {"Nodule", "opacity"} == set(known_findings(studies)) - {"No Finding"}
    assert all(q.answer == ("Yes." if labels[q.image_id][q.finding] else "No.") for q in asked)
    assert all(q.origin == "rules" for q in questions)


def test_yes_is_as_frequent_as_no_for_each_finding():
    rng = np.random.default_rng(0)
    shares = {"cardiomegaly": 0.3, "nodule": 0.1, "opacity": 0.7, "support device": 1.0}
    studies = [study(k, labels={n: int(rng.random() < p) for n, p in shares.items()}) for k in range(2000)]
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for q in gather(studies, ["rules"], RULES, 0):
        if q.kind == "presence":
            answers[q.finding][q.answer] += 1
    assert set(answers) == {"cardiomegaly", "nodule", "opacity"}  # what is always there gives itself away
    assert all(count["Yes."] == count["No."] > 150 for count in answers.values())


def test_an_image_is_asked_by_the_first_origin_that_knows_it():
    exact = study(0, "No effusion. Large nodule.", {"mass": 1}, [Finding("mass", "left")])
    other = study(1, "No effusion.", {"mass": 0})
    both = list(gather([exact, other], ["truth", "rules"], RULES, 0))
    assert {(q.image_id, q.origin) for q in both} == {("i0", "truth")} | {
        (q.image_id, q.origin) for q in both if q.image_id == "i1"
    }
    by_rules = [p for s in (exact,) for p in gather([s], ["rules"], RULES, 0)]
    assert {q.origin for q in by_rules} == {"rules"}
    assert "mass" not in {q.finding for q in by_rules}  # its label is of the truth, which rules must not use
    assert list(gather([exact, other], ["llm"], RULES, 0)) == []
