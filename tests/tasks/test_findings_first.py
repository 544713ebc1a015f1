"""Findings first: every item of a task has its list, or none has; and the model is asked as it was trained."""

from __future__ import annotations

import numpy as np
import pytest

from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import Finding, LabelSet
from llmcxr.studies.study import Study, shown_labels
from llmcxr.tasks.base import TaskData, tasks
from llmcxr.tasks.findings_first import seen_list, stated_list

RULES = RuleLabeller()
TEXT = "Small left pleural effusion. The heart is enlarged. No pneumothorax."
NAMES = LabelSet(["opacity", "mass", "nodule"])
REPORTS = ("cxr_to_report", "report_to_cxr")
OPTIONS = {"unguided_share": 0.0, "rare_findings": 0.0}


def study(labels=None, truth=(), exact=False, name="i", text=TEXT) -> Study:
    mask = "m.png" if exact else ""
    return Study(name, name, name, "", "train", findings_text=text, labels=labels or {}, truth=truth, mask_path=mask)


def test_what_is_seen_comes_from_exact_findings_else_from_each_label_else_from_the_report():
    assert seen_list(study({"opacity": 1}, (Finding("opacity", "left"),), True), "", NAMES, RULES) == "Left opacity."
    assert seen_list(study(exact=True), "", NAMES, None) == "No abnormal finding."
    labels = {"opacity": 1, "mass": 1, "nodule": 0}
    assert seen_list(study(labels), "A nodule.", NAMES, RULES) == "Mass; opacity."  # a label that is known counts
    assert seen_list(study(dict.fromkeys(NAMES, 0)), TEXT, NAMES, None) == "No abnormal finding."
    assert seen_list(study({"nodule": 0}), "Left mass. Right effusion.", NAMES, RULES) == "Left mass."
    assert seen_list(study(labels | {"nodule": -1}), "Nodule.", NAMES, RULES) == "Mass; nodule; opacity."
    # Nothing is denied that is not known to be absent.
    assert seen_list(study({"nodule": 0}), TEXT, NAMES, None) is None
    assert seen_list(study({"Tuberculosis": -1}), TEXT, LabelSet(["Tuberculosis"]), RULES) is None
    assert seen_list(study(), TEXT, LabelSet(), RULES) is None


def test_what_is_stated_comes_from_the_report_else_from_labels():
    known = LabelSet(["Pleural_Effusion", "pneumothorax"])
    assert stated_list(study(), TEXT, LabelSet(["pneumothorax"]), RULES) == "Cardiomegaly; left pleural effusion."
    as_spoken = str(stated_list(study(), TEXT, known, RULES)).casefold().removesuffix(".").split("; ")
    assert sorted(as_spoken) == ["cardiomegaly", "left pleural effusion"]  # not the column's Pleural_Effusion
    assert stated_list(study(), "The lungs are clear.", known, RULES) == "No abnormal finding."
    assert stated_list(study(), TEXT, LabelSet(["tuberculosis"]), RULES) is None
    assert stated_list(study(), TEXT, LabelSet(), RULES) is None and stated_list(study(), TEXT, known, None) is None
    mixed = LabelSet(["tuberculosis", "pleural effusion"])
    assert stated_list(study({"tuberculosis": 1}), TEXT, mixed, RULES) == "Left pleural effusion; tuberculosis."
    labels = {"Pleural_Effusion": 0, "pneumothorax": 1}
    assert stated_list(study(labels), TEXT, known, None) == "Pneumothorax."


def items(studies, findings, labeller=RULES, split="train", first=REPORTS):
    codes = {s.image_id: np.zeros(4, np.uint16) for s in studies}
    data = TaskData(split, studies, codes, LabelSet(findings), labeller, findings_first=first, options=OPTIONS)
    return {name: tasks()[name].items(data) for name in REPORTS}


@pytest.mark.parametrize("task", REPORTS)
def test_all_items_of_a_task_have_their_list_or_none_has(task):
    partly = [study({"mass": 1}, name="a"), study({"mass": 0}, name="b"), study({}, name="c")]
    for labeller, findings, first in (
        (RULES, ["mass"], True),
        (None, ["mass"], False),
        (RULES, ["mass", "tuberculosis"], False),
    ):
        own = items(partly, findings, labeller)[task]
        turns = {len(own.example(i, np.random.default_rng(i)).turns) for i in range(len(own))}
        assert len(own) == 3 and own.findings_first == first and turns == ({2} if first else {1})
        assert ("is trained without findings first" in own.note) != first
        assert first or task in own.note and "of 3 reports" in own.note
    # In another split, an item without the list that training has is left out, and this is said.
    own = items(partly, ["mass"], None, "validate")[task]
    assert len(own) == 2 and own.findings_first and "1 without a list" in own.note
    assert not items(partly, ["mass"], RULES, "validate", first=())[task].findings_first


def test_each_task_by_itself():
    own = items([study({"mass": 1})], ["mass"], RULES, first=("report_to_cxr",))
    assert not own["cxr_to_report"].findings_first and own["report_to_cxr"].findings_first
    assert own["cxr_to_report"].note == "" and len(own["cxr_to_report"].example(0, np.random.default_rng(0)).turns) == 1


def test_what_a_drawing_shows_is_compared_whatever_the_spelling():
    names = ("Pleural Effusion", "left Pleural Effusion", "right Pleural Effusion", "Pneumothorax")
    assert shown_labels([Finding("pleural effusion", "left")], names).tolist() == [1, 1, 0, 0]
