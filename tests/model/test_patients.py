"""A model is not measured, nor trained on, with held-out patients that it has seen, unless that is asked for and said."""

from __future__ import annotations

import hashlib
import json

import pytest

from llmcxr.foundation.assets import SHIPPED_MODELS
from llmcxr.foundation.errors import UserError
from llmcxr.model.folder import load_info
from llmcxr.model.patients import check_unseen, patient_hash, seen_patients, write_patients
from llmcxr.studies.study import Study


def study(patient: str, split: str) -> Study:
    return Study(f"{patient} image", patient, patient, "", split)


def test_hashes_by_hand(tmp_path):
    assert patient_hash("p1") == hashlib.sha256(b"p1").hexdigest()[:16]
    write_patients(tmp_path, [patient_hash(p) for p in ("b", "a", "a")])
    lines = (tmp_path / "patients.txt").read_text().splitlines()
    assert lines == sorted({patient_hash("a"), patient_hash("b")}) and seen_patients(tmp_path) == {*lines}
    (tmp_path / "patients.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"patients\.txt cannot be read"):
        seen_patients(tmp_path)


def test_held_out_patients_must_be_new(tmp_path):
    write_patients(tmp_path, map(patient_hash, ("a", "b", "c")))
    new = [study("a", "train"), study("d", "validate"), study("e", "test")]
    assert check_unseen(new, tmp_path, allow=False) is None
    seen = [*new, study("b", "test"), study("b", "test"), study("c", "validate")]
    with pytest.raises(
        UserError, match=r"2 of the 4 validation and test patients, e\.g\. b, .*allow_seen_patients=true"
    ):
        check_unseen(seen, tmp_path, allow=False)
    assert "2 of the 4" in (check_unseen(seen, tmp_path, allow=True) or "")


def test_a_model_that_does_not_say_is_not_taken_for_one_that_saw_nobody(tmp_path):
    assert "does not say which patients" in (check_unseen([study("a", "test")], tmp_path, allow=False) or "")


def test_the_shipped_model_knows_its_patients():
    seen = seen_patients(SHIPPED_MODELS / "phantom")
    assert seen is not None and len(seen) == 12_000
    assert patient_hash("phantom-0-train-011999") in seen and patient_hash("phantom-0-test-000000") not in seen


def test_format_2_is_still_read(tmp_path):
    values = json.loads((SHIPPED_MODELS / "phantom" / "llmcxr.json").read_text())
    new = load_info(SHIPPED_MODELS / "phantom")
    assert new.views == ("PA", "AP") and not new.earliest_only and new.format == 3
    for flag, tasks in ((True, ("cxr_to_report", "report_to_cxr")), (False, ())):
        values["decoding"] = values["decoding"] if flag else {"drawing_guidance": 2.0}  # the rest needs findings first
        old = {k: v for k, v in values.items() if k not in ("views", "earliest_only")} | {"format": 2}
        (tmp_path / "llmcxr.json").write_text(json.dumps(old | {"findings_first": flag}))
        info = load_info(tmp_path)
        assert info.findings_first == tasks and info.views == () and info.format == 3
    (tmp_path / "llmcxr.json").write_text(json.dumps(values | {"format": 1}))
    with pytest.raises(UserError, match="format 1"):
        load_info(tmp_path)
