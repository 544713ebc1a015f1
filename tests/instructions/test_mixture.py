"""The mixture: the same in any process, near its weights, every item once an epoch, worded afresh."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.randomness import stream
from llmcxr.instructions import mixture
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.mixture import Mixture
from llmcxr.instructions.questions import LIST_QUESTION, QuestionAnswer
from llmcxr.tasks import cxr_to_report, report_to_cxr
from llmcxr.tasks.cxr_to_report import CxrToReportItems
from llmcxr.tasks.cxr_vqa import CxrVqaItems
from llmcxr.tasks.findings_first import ImageReport
from llmcxr.tasks.language import LanguageItems, load_instructions
from llmcxr.tasks.report_to_cxr import ReportToCxrItems, repeats

CODES = {f"i{k}": np.full(4, k, np.uint16) for k in range(30)}
PAIRS = [ImageReport(name, codes, f"report {name}") for name, codes in CODES.items()]
QUESTIONS = [QuestionAnswer(name, f"q{q} of {name}", f"a{q}", "presence") for name in CODES for q in range(5)]
SHARES = {"list": 0.5, "presence": 0.5}
TASKS = {
    "language": LanguageItems([Turn(f"say {k}", "", str(k)) for k in range(7)]),
    "report_to_cxr": ReportToCxrItems(PAIRS),
    "cxr_to_report": CxrToReportItems(PAIRS),
    "cxr_vqa": CxrVqaItems(QUESTIONS, CODES, 3, SHARES),
}
WEIGHTS = {"language": 0.2, "report_to_cxr": 0.5, "cxr_to_report": 1.0, "cxr_vqa": 0.3}


def same(a, b) -> bool:
    def plain(e):
        return [(t.instruction, np.asarray(t.input).tolist(), np.asarray(t.response).tolist()) for t in e.turns]

    return (a.task, a.image_id, plain(a)) == (b.task, b.image_id, plain(b))


def test_deterministic_in_any_order():
    one, two = (Mixture(TASKS, WEIGHTS, 200, seed=4) for _ in range(2))
    backwards = {i: two[i] for i in reversed(range(200))}
    assert all(same(one[i], backwards[i]) for i in range(200))
    other = Mixture(TASKS, WEIGHTS, 200, seed=5)
    assert not all(same(one[i], other[i]) for i in range(200))


def test_counts_follow_the_weights():
    mixture = Mixture(TASKS, WEIGHTS, 10_000, seed=0)
    counts = mixture.counts()
    assert sum(counts.values()) == len(mixture) == 10_000
    assert counts == Counter(mixture.task(i) for i in range(10_000))
    for task, weight in WEIGHTS.items():
        share = weight / 2
        assert abs(counts[task] - 10_000 * share) < 4 * math.sqrt(10_000 * share * (1 - share))


def test_every_item_once_an_epoch_in_another_order_and_wording():
    mixture = Mixture(TASKS, {"cxr_to_report": 1.0}, 90, seed=0)
    epochs = [[mixture[i] for i in range(first, first + 30)] for first in (0, 30, 60)]
    orders = [[e.image_id for e in epoch] for epoch in epochs]
    assert all(sorted(order) == sorted(CODES) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    wordings = [{e.image_id: e.turns[0].instruction for e in epoch} for epoch in epochs]
    assert sum(len({w[name] for w in wordings}) > 1 for name in CODES) > 20
    assert len({w for words in wordings for w in words.values()}) == 10  # all phrasings come


def test_examples_of_each_task():
    rng = np.random.default_rng(0)
    e = TASKS["cxr_to_report"].example(3, rng)
    assert e.image_id == "i3" and np.array_equal(e.turns[0].input, CODES["i3"]) and e.turns[0].response == "report i3"
    assert e.turns[0].instruction in cxr_to_report.PHRASINGS
    e = TASKS["report_to_cxr"].example(3, rng)
    assert e.turns[0].input == "report i3" and np.array_equal(e.turns[0].response, CODES["i3"])
    assert e.turns[0].instruction in report_to_cxr.PHRASINGS
    assert TASKS["language"].example(2, rng).turns == (Turn("say 2", "", "2"),)


def test_findings_named_first():
    pair = ImageReport("i3", CODES["i3"], "report i3", named="Mass.")
    e = CxrToReportItems([pair]).example(0, np.random.default_rng(0))
    assert e.turns[0].instruction == LIST_QUESTION and np.array_equal(e.turns[0].input, CODES["i3"])
    assert [t.response for t in e.turns] == ["Mass.", "report i3"]
    assert e.turns[1].instruction in cxr_to_report.PHRASINGS and e.turns[1].input == ""
    e = ReportToCxrItems([pair]).example(0, np.random.default_rng(0))
    assert e.turns[0] == Turn(report_to_cxr.STATED_QUESTION, "report i3", "Mass.")
    assert e.turns[1].instruction in report_to_cxr.PHRASINGS and e.turns[1].input == ""
    assert np.array_equal(e.turns[1].response, CODES["i3"])


def test_some_drawings_without_their_report():
    task = ReportToCxrItems([ImageReport("i3", CODES["i3"], "report i3", named="Mass.")], 0.25)
    examples = [task.example(0, np.random.default_rng(seed)) for seed in range(400)]
    without = [e for e in examples if e.turns[0].input == ""]
    assert 70 < len(without) < 130
    assert all(len(e.turns) == 1 and np.array_equal(e.turns[0].response, CODES["i3"]) for e in without)
    assert all(e.turns[0].instruction in report_to_cxr.PHRASINGS for e in without)


def test_reports_with_rare_findings_are_drawn_from_more_often():
    lists = ["No abnormal finding."] * 6 + ["Left mass.", "Right mass; mass.", "Nodule.", None]
    pairs = [ImageReport(f"i{k}", CODES["i3"], "report", named=text) for k, text in enumerate(lists)]
    # mass: 2 of 10, sqrt(0.8 / 0.2) = 2; nodule: 1 of 10, sqrt(0.8 / 0.1) = 2.83
    assert repeats(pairs, 0.8) == [1] * 6 + [2, 2, 2, 1]
    assert repeats([*pairs, *pairs], 0.8)[10:] == [1] * 6 + [2, 2, 3, 1]  # what was left over the first time
    assert repeats(pairs, 0.0) == repeats(pairs, 0.1) == [1] * 10 and repeats([], 0.5) == []
    assert len(ReportToCxrItems(pairs, rare=0.8)) == 13 and len(ReportToCxrItems(pairs)) == 10


def test_ten_different_phrasings_each():
    for phrasings in (cxr_to_report.PHRASINGS, report_to_cxr.PHRASINGS):
        assert len(set(phrasings)) == 10
    assert not set(cxr_to_report.PHRASINGS) & set(report_to_cxr.PHRASINGS)


def test_questions_of_an_image_share_one_reading():
    asked = Counter()
    for seed in range(60):
        e = TASKS["cxr_vqa"].example(2, np.random.default_rng(seed))
        assert len(e.turns) == 3 and e.image_id == "i2"
        assert np.array_equal(e.turns[0].input, CODES["i2"]) and [t.input for t in e.turns[1:]] == ["", ""]
        for turn in e.turns:
            assert turn.instruction.endswith("of i2") and turn.response == "a" + turn.instruction[1]
        asked.update(t.instruction for t in e.turns)
        assert len({t.instruction for t in e.turns}) == 3
    assert len(asked) == 5 and min(asked.values()) > 20


def test_questions_without_an_image_are_left_out():
    task = CxrVqaItems([*QUESTIONS, QuestionAnswer("lost", "q", "a", "presence")], CODES, 9, SHARES)
    assert len(task) == 30 and len(task.example(0, np.random.default_rng(0)).turns) == 5


def test_questions_that_give_each_other_away_stand_apart():
    questions = [
        QuestionAnswer("i1", "Which?", "Mass.", "list"),
        QuestionAnswer("i1", "Side?", "Left.", "side", "mass"),
        QuestionAnswer("i1", "Is there a mass?", "Yes.", "presence", "mass"),
        QuestionAnswer("i1", "Is there a nodule?", "No.", "presence", "nodule"),
        QuestionAnswer("i2", "Normal?", "Yes.", "normal"),
    ]
    task = CxrVqaItems(questions, CODES, 9, SHARES)
    assert len(task) == 1  # i2 has no conversation with a share
    seen = Counter()
    for draw in range(200):
        asked = [t.instruction for t in task.example(0, np.random.default_rng(draw)).turns]
        assert asked == ["Which?"] or (
            set(asked[:2]) == {"Is there a mass?", "Is there a nodule?"} and asked[2:] == ["Side?"]
        )
        seen[len(asked)] += 1
    assert 60 < seen[1] < 140
    assert len(CxrVqaItems(questions, CODES, 9, {"list": 1.0})) == 1
    details = CxrVqaItems(questions, CODES, 9, {"detail": 1.0})
    assert [t.instruction for t in details.example(0, np.random.default_rng(0)).turns] == ["Side?"] and len(
        details
    ) == 1


def test_no_weight_and_no_data():
    with pytest.raises(UserError, match="every weight is 0"):
        Mixture(TASKS, {"language": 0.0}, 5, 0)
    with pytest.raises(UserError, match=r"\['cxr_vqa'\] have a weight but no data"):
        Mixture(TASKS | {"cxr_vqa": CxrVqaItems([], CODES, 2, SHARES)}, WEIGHTS, 5, 0)


def test_language_files_name_the_broken_line(tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_text('{"instruction": "a", "context": "c", "output": "b"}\n\n{"instruction": "a", "response": "b"}\n')
    assert load_instructions(path) == [Turn("a", "c", "b"), Turn("a", "", "b")]
    good = '{"instruction": "a", "response": "b"}\n'
    for bad in (
        "{",
        '{"instruction": "a"}',
        "[1]",
        '{"instruction": 1, "response": "b"}',
        '{"instruction": "a", "input": 3, "response": "b"}',
    ):
        path.write_text(good + good + bad + "\n")
        with pytest.raises(UserError, match=r"l\.jsonl, line 3"):
            load_instructions(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no instructions"):
        load_instructions(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_instructions(tmp_path / "missing.jsonl")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load_instructions(path)


def test_unicode_line_separators_inside_a_line(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"instruction": "a\u2028b", "response": "c\x85d"}\n', encoding="utf-8")
    assert load_instructions(tmp_path / "l.jsonl") == [Turn("a\u2028b", "", "c\x85d")]


class Numbers:
    """Items whose example tells which one it is, and where its stream of wording begins."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def example(self, item, rng):
        return InstructionExample("language", (), plain=f"{item}-{rng.integers(1000)}")


def test_the_sequence_for_a_seed_never_changes():
    """A run that was interrupted under an older version goes on with the same examples."""
    drawn = Mixture({"language": Numbers(5), "cxr_to_report": Numbers(3)}, {"language": 1, "cxr_to_report": 1}, 12, 7)
    assert (
        " ".join(drawn[i].plain for i in range(12))
        == "2-668 1-624 0-842 2-227 0-66 1-402 2-997 1-754 0-341 2-74 1-194 0-462"
    )


def test_one_permutation_an_epoch(monkeypatch):
    """Drawn anew for every example, it took 7 ms at 370,000 items: hours of a stage."""
    made = []

    def counted(*key):
        made.append(key)
        return stream(*key)

    monkeypatch.setattr(mixture, "stream", counted)
    drawn = Mixture({"language": Numbers(50)}, {"language": 1.0}, 120, seed=0)
    for i in [*range(120), 99, 100, 99]:  # at the turn of an epoch, too
        drawn[i]
    assert [key[3] for key in made if "epoch" in key] == [0, 1, 2]
