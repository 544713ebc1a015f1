"""What a report claims of findings, by hand, and which claims the model does not believe; on a toy, the whole way."""

from __future__ import annotations

import dataclasses

import pytest
from test_policies import CODES, asker, codec

from llmcxr.foundation.errors import UserError
from llmcxr.inference.backend import Sampling
from llmcxr.inference.consistency import (
    CheckedSentence,
    Claim,
    Doubt,
    check_possible,
    check_report,
    claims_of,
    labeller_for,
)
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.model.calibration import Calibration, FindingMap, FittedOn

NAMES = ("Cardiomegaly", "pleural effusion", "pneumothorax", "nodule")
LINE = FindingMap(1.0, 0.0, 5, 50)
OWN = Calibration(
    dict.fromkeys(NAMES, LINE), "none", {}, FittedOn("toy", "validate", 50, 50, "x"), NAMES[1:2], 1.0, 0.2, 0.6
)
REPORT = (
    "The heart is enlarged. There is no pneumothorax or left pleural effusion. A small effusion on the right. "
    "No effusion on the left; a small right effusion. Possible nodule. Comparison with Dr. Smith's films. The heart is enlarged."
)


def test_claims_are_of_sentences():
    parts, claims = claims_of(REPORT, NAMES, labeller_for(NAMES))
    assert " ".join(parts) == REPORT and len(parts) == 7
    assert set(claims) == {
        Claim(0, "Cardiomegaly", True),
        Claim(1, "pneumothorax", False),
        Claim(1, "pleural effusion", False),
        Claim(2, "pleural effusion", True),
        Claim(3, "pleural effusion", True),
        Claim(6, "Cardiomegaly", True),  # the same sentence again is one of its own
    }
    assert claims_of("", NAMES, labeller_for(NAMES)) == ([], [])


def test_what_is_not_believed_is_marked():
    p = {"Cardiomegaly": 0.9, "pleural effusion": 0.1, "pneumothorax": 0.7, "nodule": 0.0}
    checked = check_report(REPORT, p, OWN, labeller_for(NAMES))
    assert [s.text for s in checked] == claims_of(REPORT, NAMES, labeller_for(NAMES))[0]
    assert [s.doubts for s in checked] == [
        (),
        (Doubt("pneumothorax", False, 0.7),),
        (Doubt("pleural effusion", True, 0.1),),
        (Doubt("pleural effusion", True, 0.1),),
        (),  # what is only possible is no claim
        (),
        (),
    ]
    assert str(checked[1].doubts[0]) == "denies pneumothorax, of which the image gives p = 0.70"
    mild = dataclasses.replace(OWN, doubt_denied=None)
    assert sum(bool(s.doubts) for s in check_report(REPORT, p, mild, labeller_for(NAMES))) == 2


def test_without_thresholds_nothing_is_checked():
    for lacking, said in (
        (None, "it has no calibration"),
        (dataclasses.replace(OWN, doubt_stated=None, doubt_denied=None), "too few sentences"),
    ):
        with pytest.raises(UserError, match=f"cannot be checked: .*{said}"):
            check_possible(lacking)
    assert check_possible(OWN) is OWN


def test_the_labeller_is_the_one_that_knows_the_findings():
    assert "tortuous aorta" in labeller_for(["tortuous aorta", "granuloma"]).findings
    assert "Lung Opacity" in labeller_for(["Lung Opacity", "Enlarged Cardiomediastinum"]).findings


def test_a_model_checks_its_own_report(monkeypatch):
    names = ("Mass", "Nodule")
    shifted = dict.fromkeys(names, FindingMap(1.0, -30.0, 5, 50))  # nothing is believed
    calibration = dataclasses.replace(OWN, findings=shifted, sides=names[:1], doubt_stated=0.5)
    raw, model = (LlmCxr(asker(), codec(), own) for own in (None, calibration))
    image = CODES[0]
    p = raw.finding_probabilities(image)
    assert model.finding_probabilities(image) == calibration.probabilities(p) != p
    monkeypatch.setattr(LlmCxr, "reports", lambda *_: ["There is a nodule. The heart is normal."])
    limit = Sampling(max_new_tokens=6)
    assert model.report(image, limit) == "There is a nodule. The heart is normal."
    first, second = model.report(image, limit, check=True)
    assert first.doubts[0].finding == "Nodule" and first.doubts[0].p < 1e-6
    assert second == CheckedSentence("The heart is normal.")
    with pytest.raises(UserError, match="no calibration"):
        raw.report(image, limit, check=True)
    assert raw.finding_sides(image) == {} and list(model.finding_sides(image)) == ["Mass"]
    sides = model.finding_sides(image)["Mass"]
    assert list(sides) == ["left", "right", "both"] and sum(sides.values()) == pytest.approx(1)
    assert list(sides.values()) == pytest.approx(raw.side_answers(CODES[0], ["Mass"])[0].tolist(), abs=1e-5)
