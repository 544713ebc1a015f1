"""Which cases the results page shows, and what it says of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from llmcxr.evaluation.evaluate import Cases, Evaluation, _shown, _to_show, shortfalls

from llmcxr.evaluation.settings import EvaluationSettings
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


def test_drawings_are_held_to_their_patient_and_to_what_was_asked():
    """12 of 24 patients have a nodule, 8 reports state it, and drawings show exactly what reports state."""
    stated = ["There is a nodule."] * 8 + ["The lungs are clear."] * 16
    cases = [
        dataclasses.replace(study(nodule=int(k < 12)), image_id=f"i{k}", patient_id=f"p{k}", impression_text=text)
        for k, text in enumerate(stated)
    ]

    class Model:
        info = SimpleNamespace(report="impression")
        engine = SimpleNamespace(device=torch.device("cpu"), image_length=4)

        def draw_codes(self, texts, sampling):
            return np.array([[int("nodule" in text)] * 4 for text in texts])

        def decode(self, codes):
            noise = np.random.default_rng(0).uniform(-0.9, -0.3, (len(codes), 192, 192)).astype(np.float32)
            return np.where(codes[:, :1, None] == 1, noise + 1, noise)

    def judge(images, device):
        return (images.mean(axis=(1, 2)) > 127).astype(float)[:, None]

    images = np.zeros((24, 192, 192), np.uint8)
    images[:12] = 255
    codes = {s.image_id: np.zeros(4, int) for s in cases}
    given = Cases(cases, images, codes, [], [], ("nodule",))
    settings = dataclasses.replace(EvaluationSettings(), drawings=24, bootstrap=20)
    evaluation = Evaluation(Model(), SimpleNamespace(scores=judge), given, "", settings)  # type: ignore[arg-type]
    evaluation.draw()
    image = evaluation.results.summary["image"]
    assert image["auroc_asked"] == image["auroc_real"] == 1
    # Of the patients 8 of 12 are seen, and no other: (8 x 12 + 4 x 12 / 2) / (12 x 12).
    assert image["auroc"] == pytest.approx(5 / 6)
    # The real images show all 12, of which 8 were asked for: (8 x 12 + 8 x 4 / 2) / (8 x 16).
    assert image["auroc_asked_real"] == pytest.approx(7 / 8)
    assert image["ms_ssim_n"] == 24 and image["ms_ssim_between_draws"] == pytest.approx(
        1
    )  # a model without any variety
    assert image["ms_ssim_own_shifted"] < image["ms_ssim_between_draws_low"]
    assert image["auroc_low"] <= image["auroc"] <= image["auroc_high"] and image["n"] == 24
