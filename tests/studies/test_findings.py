"""Names of findings keep the user's spelling and compare by a normal form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.studies.findings import Finding, LabelSet, is_finding, label_value, normal_form
from llmcxr.studies.study import Study, known_findings, label_matrix, shown_labels, sided_labels


def test_names_compare_by_their_normal_form():
    own = LabelSet(["Pleural_Effusion", "COVID-19", "pleural effusion"])
    assert list(own) == ["Pleural_Effusion", "COVID-19"]
    assert "pleural  EFFUSION" in own and "covid 19" in own and "covid" not in own and 3 not in own
    assert own.spelling("pleural effusion") == "Pleural_Effusion" and own.place("Covid_19") == 1
    assert own == LabelSet(["pleural effusion", "covid-19"]) and hash(own) == hash(
        LabelSet(["pleural effusion", "covid-19"])
    )
    assert own.missing(["mass", "COVID 19"]) == ("mass",) and own[0] == "Pleural_Effusion" and own[1:] == ("COVID-19",)
    with pytest.raises(KeyError):
        own.place("mass")


@given(st.text())
def test_normal_form_is_its_own(name):
    assert normal_form(normal_form(name)) == normal_form(name)


def test_the_absence_of_findings_is_none():
    assert not any(map(is_finding, ("No Finding", "no_finding", "NORMAL", "normal ")))
    assert all(map(is_finding, ("Pleural Other", "normal pressure hydrocephalus", "")))


def test_uncertain_counts_as_the_protocol_says():
    for protocol, value in (("left_out", np.nan), ("positive", 1), ("negative", 0)):
        np.testing.assert_equal(label_value(-1, protocol), value)
        assert label_value(1, protocol) == 1 and label_value(0, protocol) == 0 and np.isnan(label_value(None, protocol))
        expected = [[1, value, np.nan], [0, np.nan, np.nan]]
        found = label_matrix([study(a=1, b=-1), study(a=0)], ("a", "b", "c"), protocol)
        np.testing.assert_array_equal(found, expected)
    assert np.isnan(label_matrix([study(a=-1)], ("a",))).all()


def study(**labels: int) -> Study:
    return Study("i", "p", "s", "i.png", "train", labels=labels)


def test_findings_are_known_where_they_occur_both_ways():
    assert known_findings([study(mass=1, nodule=-1), study(mass=0, edema=1)]) == ("mass",)
    assert known_findings([study(mass=1), study()]) == known_findings([]) == ()
    assert sided_labels([], ())[1].shape == sided_labels([study()], ())[1][:0].shape == (0, 0)
    assert sided_labels([], ("mass",))[1].shape == (0, 1)


def test_sides_are_told_from_names_that_begin_with_one():
    names = ("Mass", "left Mass", "right Mass", "left ventricular hypertrophy")
    shown = shown_labels([Finding("mass", "left"), Finding("left ventricular hypertrophy")], names)
    assert shown.tolist() == [1, 1, 0, 1]
