"""Questions from truth and labels: right, written as expected, and balanced so that wording gives nothing away."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.foundation.errors import UserError
from llmcxr.instructions.questions import (
    QuestionAnswer,
    finding_list,
    listed_findings,
    presence_question,
    questions_of,
    read_questions,
    write_questions,
)
from llmcxr.studies.findings import Finding
from llmcxr.studies.study import Study

SHARES = {"cardiomegaly": 0.3, "nodule": 0.1, "opacity": 0.7}


def study(k: int, truth=(), labels=None, exact=True) -> Study:
    return Study(
        f"i{k}",
        f"p{k}",
        f"s{k}",
        f"{k}.png",
        "train",
        labels=labels or {},
        truth=tuple(truth),
        mask_path="m" if exact else "",
    )


def population(count: int) -> list[Study]:
    rng = np.random.default_rng(0)
    studies = []
    for k in range(count):
        labels = {name: int(rng.random() < share) for name, share in SHARES.items()}
        truth = [Finding(name) for name, value in labels.items() if value]
        studies.append(study(k, truth, labels))
    return studies


def test_questions_about_one_study_by_hand():
    truth = (
        Finding("pleural effusion", "right", "moderate"),
        Finding("support device", kind="pacemaker", side="left"),
        Finding("atelectasis", "left"),
        Finding("atelectasis", "right"),
    )
    labels = {"pleural effusion": 1, "support device": 1, "atelectasis": 1, "nodule": 0}
    normal = study(1, (), dict.fromkeys(labels, 0))
    questions = [q for q in questions_of([study(0, truth, labels), normal], seed=0) if q.image_id == "i0"]
    found = {(q.question, q.answer, q.kind, q.finding) for q in questions}
    assert len(found) == len(questions)
    assert found == {
        (
            "Which abnormal findings does this chest radiograph show?",
            "Bilateral atelectasis; right pleural effusion; left support device.",
            "list",
            "",
        ),
        ("Is this chest radiograph normal?", "No.", "normal", ""),
        ("How many different abnormal findings are there?", "Three.", "count", ""),
        ("Is there a pleural effusion?", "Yes.", "presence", "pleural effusion"),
        ("On which side is the pleural effusion?", "Right.", "side", "pleural effusion"),
        ("How severe is the pleural effusion: mild, moderate or severe?", "Moderate.", "severity", "pleural effusion"),
        ("Is there a support device?", "Yes.", "presence", "support device"),
        ("On which side is the support device?", "Left.", "side", "support device"),
        ("What kind of support device is it?", "Pacemaker.", "type", "support device"),
        ("Is there atelectasis?", "Yes.", "presence", "atelectasis"),
        ("On which side is the atelectasis?", "Both sides.", "side", "atelectasis"),
    }  # the nodule is never present here, so it is never asked about


def test_a_normal_study():
    found = {q.question: q.answer for q in questions_of([study(0, (), {"nodule": 0})], seed=0)}
    assert found == {
        "Which abnormal findings does this chest radiograph show?": "No abnormal finding.",
        "Is this chest radiograph normal?": "Yes.",
        "How many different abnormal findings are there?": "None.",
    }


def test_wording_of_lists_and_articles():
    assert finding_list([Finding("opacity", "both"), Finding("opacity", "both")]) == "Bilateral opacity."
    unordered = [Finding("opacity", "right"), Finding("mass"), Finding("opacity", "left")]
    assert finding_list(unordered) == "Mass; bilateral opacity."
    assert finding_list([Finding("nodule"), Finding("nodule", "left")]) == "Left nodule."
    assert presence_question("opacity") == "Is there an opacity?"
    assert presence_question("mass") == "Is there a mass?"
    assert presence_question("nodule") == "Is there a nodule?"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ARDS", "ARDS"),
        ("COVID-19", "COVID-19"),
        ("covid", "covid"),
        ("Pleural_Effusion", "a Pleural Effusion"),
        ("effusion", "an effusion"),
        ("Support Devices", "Support Devices"),
        ("Enlarged Cardiomediastinum", "an Enlarged Cardiomediastinum"),
        ("Pneumonia", "Pneumonia"),
        ("hiatal hernia", "a hiatal hernia"),
        ("Pleural_Thickening", "Pleural Thickening"),
        ("unilateral opacity", "a unilateral opacity"),
        ("MRI artefact", "an MRI artefact"),
        ("granuloma", "a granuloma"),
        ("cardiomegaly", "cardiomegaly"),
        ("support device", "a support device"),
        ("hypoinflation", "hypoinflation"),
        ("tortuous aorta", "a tortuous aorta"),
        ("atelectasis", "atelectasis"),
        ("hyperinflation", "hyperinflation"),
        ("interstitial markings", "interstitial markings"),
        ("elevated diaphragm", "an elevated diaphragm"),
        ("scoliosis", "scoliosis"),
        ("pulmonary edema", "pulmonary edema"),
        ("pneumothorax", "a pneumothorax"),
        ("Klebsiella", "Klebsiella"),
        ("Influenza", "Influenza"),
        ("E.Coli", "E.Coli"),
        ("Mycoplasma", "Mycoplasma"),
        ("Streptococcus", "Streptococcus"),
    ],
)
def test_articles(name, said):
    assert presence_question(name) == f"Is there {said}?"


def test_yes_and_no_are_balanced_for_each_question():
    studies = population(4000)
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for q in questions_of(studies, seed=1):
        if q.kind == "presence":
            answers[q.finding][q.answer] += 1
    assert set(answers) == set(SHARES)
    for name, count in answers.items():
        yes, no = count["Yes."], count["No."]
        assert abs(yes - no) < 5 * (yes + no) ** 0.5, (name, count)
        assert yes + no > 600


def test_answers_agree_with_the_labels():
    studies = {s.image_id: s for s in population(300)}
    for q in questions_of(list(studies.values()), seed=1):
        labels = studies[q.image_id].labels
        if q.kind == "presence":
            assert q.answer == ("Yes." if labels[q.finding] == 1 else "No.")
        elif q.kind == "normal":
            assert q.answer == ("No." if any(labels.values()) else "Yes.")


def test_the_seed_and_the_image_decide_which_are_asked():
    studies = population(200)
    assert list(questions_of(studies, 1)) == list(questions_of(studies, 1)) != list(questions_of(studies, 2))


def test_round_trip_and_what_holds_no_questions(tmp_path):
    questions = list(questions_of(population(20), 0))
    path = tmp_path / "vqa.parquet"
    assert write_questions(path, iter(questions)) == len(questions)
    assert list(read_questions(path)) == questions
    write_questions(path, [QuestionAnswer("a", "q", "a", "shape")])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the kind 'shape'"):
        read_questions(path)
    with pytest.raises(UserError, match="the `vqa` stage"):
        read_questions(tmp_path / "none.parquet")


NAMES = [
    "COVID-19",
    "ARDS",
    "Pleural_Effusion",
    "left ventricular hypertrophy",
    "opacity",
    "Opacity of the left",
    "mass",
]


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", "left", "right", "both"])))
def test_a_list_says_which_findings_it_was_made_of(sides: dict[str, str]) -> None:
    findings = [Finding(name, side) for name, side in sides.items()]
    assert sorted(listed_findings(finding_list(findings), NAMES), key=str) == sorted(findings, key=str)
    if not sides.keys() - {"opacity", "mass"}:  # without the names, small letters
        assert sorted(listed_findings(finding_list(findings)), key=str) == sorted(findings, key=str)
