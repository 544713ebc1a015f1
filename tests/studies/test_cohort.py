"""Filters count each dropped study once; splits keep patients apart and do not move when others come or go."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.studies.cohort import CohortSettings, assign_splits, check_splits, select_cohort, split_of
from llmcxr.studies.study import Study


def study(image: str, patient: str, **values) -> Study:
    base = {"view": "PA", "order": 0, "findings_text": "f", "impression_text": "i", "split": "train"} | values
    return Study(image_id=image, patient_id=patient, study_id=f"s{image}", image_path=f"{image}.png", **base)


STUDIES = [
    study("1", "a"),
    study("2", "a", view="LATERAL"),
    study("3", "a", order=1),
    study("4", "b", order=2, impression_text=" "),
    study("5", "b", order=3),
    study("6", "c", view="ap", labels={"mass": 0}),
    study("7", "d", view=""),
]


def test_paper_stage_two():
    settings = CohortSettings(views=["AP", "PA"], earliest_only=True, sections="impression")
    result = select_cohort(STUDIES, settings)
    assert [s.image_id for s in result.studies] == ["1", "6"]
    assert result.dropped == Counter({"view LATERAL": 1, "not the patient's earliest study": 3, "view unknown": 1})


def test_stage_one_keeps_everything_with_a_report():
    assert len(select_cohort(STUDIES, CohortSettings()).studies) == len(STUDIES)
    bare = [study("8", "e", findings_text="", impression_text="")]
    assert select_cohort([*STUDIES, *bare], CohortSettings()).dropped == {"no findings and impression": 1}


def test_data_of_labels_alone_are_kept():
    bare = [study("8", "e", findings_text="", impression_text="", labels={"mass": 1})]
    assert select_cohort(bare, CohortSettings()).studies == bare


def test_a_cohort_may_be_empty():
    lateral = [study("1", "a", view="LATERAL")]
    assert select_cohort(lateral, CohortSettings(views=["AP", "PA"])).dropped == {"view LATERAL": 1}
    assert select_cohort([], CohortSettings()).studies == assign_splits([], 0, FRACTIONS) == []


FRACTIONS = {"train": 0.7, "validate": 0.1, "test": 0.2}


def test_splits_by_patient_in_the_stated_parts():
    studies = [study(f"{p}-{i}", f"p{p}", split="") for p in range(2000) for i in range(2)]
    done = assign_splits(studies, 3, FRACTIONS)
    check_splits(done)
    counts = Counter(s.split for s in done)
    for name, part in FRACTIONS.items():
        assert counts[name] / len(done) == pytest.approx(part, abs=0.04)
    assert assign_splits(studies[::-7], 3, FRACTIONS) == done[::-7]
    assert [s.split for s in assign_splits(studies, 4, FRACTIONS)] != [s.split for s in done]


def test_stated_splits_stay_and_bind_the_patient():
    studies = [study("1", "a", split="test"), study("2", "a", split=""), study("3", "b", split="validate")]
    assert [s.split for s in assign_splits(studies, 0, {"train": 1.0})] == ["test", "test", "validate"]
    assert split_of("x", 0, {"test": 1.0}) == "test"


def test_a_patient_in_two_splits_is_an_error():
    with pytest.raises(UserError, match="1 patient is in more than one split, e.g. a "):
        check_splits([study("1", "a"), study("2", "a", split="test"), study("3", "b")])
    with pytest.raises(UserError, match="'dev'"):
        check_splits([dataclasses.replace(study("1", "a"), split="dev")])
