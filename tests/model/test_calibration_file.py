"""calibration.json: what it does to probabilities, and that a model's folder keeps it whole."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.errors import UserError
from llmcxr.model.calibration import (
    CALIBRATION,
    Calibration,
    FindingMap,
    FittedOn,
    load_calibration,
    save_calibration,
)
from llmcxr.model.find import find_model
from llmcxr.model.folder import load_info
from llmcxr.model.packed import pack
from llmcxr.model.sums import SUMS, check_sums, write_sums

OWN = Calibration(
    findings={"Mass": FindingMap(1.0, -2.0, 5, 50), "Pleural Effusion": FindingMap(2.0, 0.0, 9, 50)},
    method="a line each, held by 10",
    log_loss={"none": 0.3, "a line each, held by 10": 0.2},
    fitted_on=FittedOn("table", "validate", 50, 48, "abc"),
    sides=("Mass",),
    side_temperature=2.0,
    doubt_stated=0.2,
)


def test_a_line_in_logits():
    p = OWN.probabilities({"Mass": 0.5, "pleural_effusion": 0.8, "other": 0.3})
    assert p["Mass"] == pytest.approx(1 / (1 + np.exp(2)))
    assert p["pleural_effusion"] == pytest.approx(16 / 17)  # odds 4, squared; asked for as the user spells it
    assert p["other"] == 0.3 and list(p) == ["Mass", "pleural_effusion", "other"]


@given(st.floats(0.01, 50), st.floats(-9, 9), st.lists(st.floats(0, 1), min_size=2))
def test_no_order_changes_and_p_stays_p(slope, intercept, values):
    found = FindingMap(slope, intercept, 1, 2)(np.sort(values))
    assert (np.diff(found) >= 0).all() and (found >= 0).all() and (found <= 1).all()


def test_sides_are_less_certain_by_a_temperature_above_one():
    p = OWN.side_probabilities([[0.81, 0.09, 0.1], [1.0, 0.0, 0.0]])
    assert np.allclose(p.sum(1), 1) and p.argmax(1).tolist() == [0, 0] and np.isfinite(p).all()
    assert p[0, 0] / p[0, 1] == pytest.approx(3)  # the root of 9


def test_it_comes_back_as_it_was(tmp_path):
    assert load_calibration(tmp_path) is None
    save_calibration(tmp_path, OWN)
    assert load_calibration(tmp_path) == OWN and not (tmp_path / SUMS).exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not readable"),
        ("[]", "should hold an object"),
        ("{}", "findings: is required"),
        (json.dumps({"format": 2}), "format"),
        (json.dumps(dataclasses.asdict(OWN)).replace('2.0, "intercept": 0.0', '-1, "intercept": 0.0'), "slope"),
        (
            json.dumps(dataclasses.asdict(OWN))
            .replace("0.2}", "0.2}")
            .replace('"doubt_stated": 0.2', '"doubt_stated": 3'),
            "doubt_stated",
        ),
    ],
)
def test_what_is_no_calibration_is_said(tmp_path, text, said):
    (tmp_path / CALIBRATION).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        load_calibration(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_sums_follow_and_hide_no_damage(tmp_path):
    (tmp_path / "packed.json").write_text("{}")
    (tmp_path / "adapters.safetensors").write_text("weights")
    write_sums(tmp_path)
    for own in (OWN, dataclasses.replace(OWN, doubt_stated=0.3)):
        save_calibration(tmp_path, own)
        check_sums(tmp_path)
    (tmp_path / "adapters.safetensors").write_text("damaged")
    with pytest.raises(UserError, match="adapters.safetensors is damaged"):
        save_calibration(tmp_path, OWN)
    assert load_calibration(tmp_path) == dataclasses.replace(OWN, doubt_stated=0.3)


def test_packing_takes_it_along(tmp_path):
    run, shipped = tmp_path / "run", SHIPPED_MODELS / "phantom"
    for name in ("image_tokenizer", "judge"):
        shutil.copytree(shipped / name, run / name)
    (run / "model").mkdir()
    shutil.copy(shipped / "llmcxr.json", run / "model")
    (run / "stage1").mkdir()
    save_file({"a.lora_A.default.weight": torch.zeros(2, 3)}, run / "stage1" / "weights.safetensors")
    pack(run, "stage1", "lora", tmp_path / "without", "card")
    assert load_calibration(tmp_path / "without") is None
    save_calibration(run / "model", OWN)
    pack(run, "stage1", "lora", tmp_path / "packed", "card")
    assert load_calibration(tmp_path / "packed") == OWN
    check_sums(tmp_path / "packed")


def test_the_shipped_model_has_one():
    packed = load_calibration(SHIPPED_MODELS / "phantom")
    assert packed is not None and packed.fitted_on.split == "validate"
    assert list(packed.findings) == list(load_info(SHIPPED_MODELS / "phantom").findings)
    assert packed.doubt_stated is not None and packed.doubt_denied is not None
    assert load_calibration(find_model("phantom")) == packed  # unpacking takes it along
