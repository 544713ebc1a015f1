"""Which cases the results page shows, and what it says of them."""

from __future__ import annotations

from llmcxr.evaluation.evaluate import _shown, _to_show, shortfalls
from llmcxr.studies.study import Study


def study(**labels: int) -> Study:
    return Study("i", "p", "s", "i.png", "test", labels=labels)


def test_unknown_and_uncertain_findings_are_not_denied():
    findings = ("mass", "nodule")
    assert _shown(study(mass=1, nodule=0), findings) == "mass"
    assert _shown(study(mass=0, nodule=0), findings) == "no finding"
    assert _shown(study(mass=0), findings) == _shown(study(mass=0, nodule=-1), findings) == _shown(study(), ()) == ""


def test_three_quarters_of_the_cases_shown_have_findings():
    some, none = study(mass=1), study(mass=0)
    assert _to_show([none, some, none, some, some, some, none], 4) == [1, 3, 4, 0]
    assert _to_show([none, none, some], 8) == [2, 0, 1]
    assert _to_show([none] * 9, 8) == [2, 3, 4, 5, 6, 7, 0, 1]
    assert _to_show([], 8) == []


def test_what_was_not_measured_is_no_shortfall():
    image = {"ssim_between_drawn": 0.5, "ssim_between_real": 0.5}
    assert shortfalls({"image": image | {"auroc_low": float("nan")}}) == []
    assert len(shortfalls({"image": image | {"auroc_low": 0.5}})) == 1
