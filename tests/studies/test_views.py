"""One table of views for every data set; a description that says more than one, or another thing, is not guessed at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcxr.studies.views import VIEWS, is_radiography, normal_view, view_in, wanted_views


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("AP Supine", "AP"), ("AP SUPINE", "AP"), ("AP_horizontal", "AP"), ("AP semi erect", "AP"), ("Portable", "AP"),
        ("PORTABLE AP", "AP"), ("antero-posterior", "AP"), ("supine", "AP"), ("pa", "PA"), ("PA erect", "PA"),
        ("postero-anterior", "PA"), ("Chest PA view", "PA"), ("Frontal", "FRONTAL"), ("AP/PA", "FRONTAL"), ("L", "LATERAL"),
        ("LL", "LATERAL"), ("Left lateral", "LATERAL"), ("XTABLE LATERAL", "LATERAL"), ("AP LLD", "DECUBITUS"), ("LAO", "OBLIQUE"),
        ("AP AXIAL", "LORDOTIC"), ("", ""), ("nan", ""), ("Unknown", ""), ("CHEST", ""), ("erect", ""), ("SWIMMERS", "SWIMMERS"),
        ("Axial", "AXIAL"), ("PA and lateral", "PA AND LATERAL"),
    ],
)  # fmt: skip
def test_spellings(text, view):
    assert normal_view(text) == view


@given(st.text(max_size=30))
def test_a_name_stays(text):
    assert normal_view(normal_view(text)) == normal_view(text)


def test_every_name_is_its_own():
    assert all(normal_view(view) == view for view in VIEWS)
    spellings = [s for own in VIEWS.values() for s in own]
    assert len(spellings) == len(set(spellings))


def test_what_a_cohort_asks_for():
    assert wanted_views(["frontal"]) == wanted_views(["pa", "AP"]) == {"PA", "AP", "FRONTAL"}
    assert wanted_views(["PA"]) == {"PA"}, "of a frontal film it is not known"
    assert wanted_views(["ll"]) == {"LATERAL"}


def test_descriptions():
    assert (
        view_in("CHEST PA PORTABLE") == "PA"
        and view_in("W034 Chest lat.") == "LATERAL"
        and view_in("Thorax lateral") == "LATERAL"
    )
    assert view_in("CHEST (PA AND LAT)") == "" == view_in("CHEST") == view_in("L SPINE")


def test_modalities():
    assert all(map(is_radiography, ("CR", "dx", "X-ray", "X-Ray", "RG", "DR", "radiograph")))
    assert not any(map(is_radiography, ("CT", "MR", "SEG", "SR", "US", "RTDOSE", "OT", "")))
