"""Filters count each dropped study once; splits keep patients apart and do not move when others come or go."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from llmcxr.foundation.errors import UserError
from llmcxr.studies.cohort import (
    CohortRules,
    CohortSettings,
    assign_splits,
    check_splits,
    find_copies,
    into_one_split,
    select_cohort,
    split_of,
)
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


def test_the_first_of_all_studies_not_of_those_that_are_left():
    """The patient's first study has no image, so it is not in the data: the follow-up is no first study."""
    studies = [study("1", "a", order=1), study("2", "a", order=2), study("3", "b", order=0)]
    result = select_cohort(studies, CohortSettings(earliest_only=True))
    assert [s.image_id for s in result.studies] == ["3"] and not result.notes


def test_where_the_order_is_known_of_some_patients_the_others_are_counted():
    studies = [
        study("1", "a"),
        study("2", "a", order=1),
        *(study(i, "b", order=None) for i in "34"),
        study("5", "c", order=None),
    ]
    result = select_cohort(studies, CohortSettings(earliest_only=True))
    assert [s.image_id for s in result.studies] == ["1", "5"], "one study is the first whenever it was"
    assert result.dropped == {
        "not the patient's earliest study": 1,
        "not known which study is the patient's earliest": 2,
    }


@pytest.mark.parametrize(
    ("studies", "note"),
    [
        (
            [study(i, "a", order=None) for i in "12"],
            "of none of the 1 patients of several studies their order is known",
        ),
        ([study("1", "a"), study("2", "b")], "every patient has one study"),
    ],
)
def test_a_rule_without_effect_is_said(studies, note):
    result = select_cohort(studies, CohortSettings(earliest_only=True))
    assert result.studies == studies and len(result.notes) == 1 and note in result.notes[0]


def test_views_in_any_spelling():
    studies = [study(v, v, view=v) for v in ("PA", "AP Supine", "Portable", "Frontal", "LL", "")]

    def kept(*views: str) -> list[str]:
        return [s.view for s in select_cohort(studies, CohortRules(views=list(views))).studies]

    assert kept("frontal") == kept("AP", "PA") == ["PA", "AP Supine", "Portable", "Frontal"]
    assert kept("AP") == ["AP Supine", "Portable"] and kept("lateral") == ["LL"]


def test_labels_that_must_be_known():
    studies = [study("1", "a", labels={"mass": 0, "edema": -1}), study("2", "b", labels={"Mass": 1}), study("3", "c")]
    result = select_cohort(studies, CohortRules(labels=["mass"]))
    assert [s.image_id for s in result.studies] == ["1", "2"]
    assert not select_cohort(studies, CohortRules(labels=["mass", "edema"])).studies


def test_counts_after_each_rule():
    result = select_cohort(STUDIES, CohortSettings(views=["frontal"], earliest_only=True, sections="impression"))
    assert [(r.images, r.studies, r.patients) for r in result.rules] == [(7, 7, 4), (5, 5, 3), (2, 2, 2), (2, 2, 2)]
    assert [r.rule for r in result.rules] == [
        "all",
        "views AP, FRONTAL, PA",
        "the patient's earliest study",
        "impression",
    ]


def copied() -> tuple[list[Study], np.ndarray]:
    """Images 0 and 3 are the same (patients a and d, training and test), 1 and 2 (patient b)."""
    patients = [("a", "train"), ("b", "train"), ("b", "train"), ("d", "test"), ("d", "test"), ("e", "validate")]
    studies = [study(str(k), patient, split=split) for k, (patient, split) in enumerate(patients)]
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 4)).astype(np.uint8)
    pixels[3], pixels[2] = pixels[0], pixels[1]
    return studies, pixels


def test_copies_are_found_and_counted():
    copies = find_copies(*copied())
    assert [[s.image_id for s in group] for group in copies.groups] == [["0", "3"], ["1", "2"]]
    assert copies.counts() == {"groups": 2, "images": 4, "across patients": 1, "across splits": 1}


def test_patients_who_share_an_image_are_in_one_split():
    studies, pixels = copied()
    kept, moved = into_one_split(studies, find_copies(studies, pixels))
    assert [s.split for s in kept] == ["train"] * 5 + ["validate"] and moved == 1
    check_splits(kept)
    assert into_one_split(kept, find_copies(kept, pixels)) == (kept, 0)


def test_patients_are_joined_over_others():
    """a and b share one, b and c another: all three are together."""
    studies = [
        study("0", "a", split="test"),
        study("1", "b", split="test"),
        study("2", "b", split="test"),
        study("3", "c"),
    ]
    pixels = np.zeros((4, 2, 2), np.uint8)
    pixels[2:] = 1
    assert [s.split for s in into_one_split(studies, find_copies(studies, pixels))[0]] == ["train"] * 4
