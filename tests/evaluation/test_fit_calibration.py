"""Calibration fitted to readings: it finds what was done to true probabilities, and looks at no patient that it is judged by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from llmcxr.evaluation import calibration as fitting
from llmcxr.evaluation.readings import ImageReading
from llmcxr.foundation.errors import UserError
from llmcxr.inference.consistency import labeller_for
from llmcxr.metrics.calibration import log_loss
from llmcxr.studies.findings import Finding
from llmcxr.studies.study import Study

FINDINGS = ("Nodule", "pleural effusion", "pneumothorax")


def drawn(n: int, shift: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 3] that are `shift` too high and twice too certain, and labels."""
    random = np.random.default_rng(seed)
    true = random.normal(-1.0, 1.5, (n, 3))
    return 2 * true + shift, (random.uniform(size=(n, 3)) < expit(true)).astype(float)


def cohort(n: int = 60, reports=None) -> tuple[list[ImageReading], list[Study]]:
    """Readings and studies of n patients; effusions stand on the left."""
    logits, labels = drawn(n)
    readings, studies = [], []
    for i in range(n):
        truth = tuple(Finding(name, "left" * (f == 1)) for f, name in enumerate(FINDINGS) if labels[i, f])
        spelt = {name.lower(): int(value) for name, value in zip(FINDINGS, labels[i], strict=True)}
        studies.append(Study(f"i{i}", f"p{i}", "s", "i.png", "validate", "PA", 0, labels=spelt, truth=truth))
        p = dict(zip(FINDINGS, expit(logits[i]).tolist(), strict=True))
        sides = {FINDINGS[1]: [0.5, 0.3, 0.2]} if labels[i, 1] else {}
        readings.append(ImageReading(f"i{i}", p, sides, reports[i] if reports else ""))
    return readings, studies


def test_one_line_is_that_of_scikit_learn():
    logits, labels = drawn(400)
    labels[:7, 1] = np.nan
    known = ~np.isnan(labels)
    other = LogisticRegression(C=1e6).fit(logits[known][:, None], labels[known])
    lines = fitting.METHODS["one line"](logits, labels)
    assert np.allclose(lines, [other.coef_[0, 0], other.intercept_[0]], atol=0.01)
    assert np.allclose(lines[0], [0.5, -1.0], atol=0.15)  # what was done, undone
    (temperature, offset), *_ = fitting.METHODS["one temperature"](logits - 2, labels)
    assert temperature == pytest.approx(0.5, abs=0.1) and offset == 0


def test_lines_of_their_own_lie_between_the_one_of_all_and_those_without_a_pull():
    logits, labels = drawn(300)
    logits[:, 2] += 3  # one finding is worse than the others
    one, free, held = (fitting._shared(logits, labels), *(fitting._each(logits, labels, s) for s in (1e-4, 1e4)))
    assert np.allclose(held, one, atol=0.02)
    for f in range(3):
        other = LogisticRegression(C=1e6).fit(logits[:, f, None], labels[:, f])
        assert np.allclose(free[f], [other.coef_[0, 0], other.intercept_[0]], atol=0.05)
    assert free[2, 1] < free[0, 1] - 1
    # A finding that nobody has keeps a slope above 0, and becomes less likely.
    labels[:, 0] = 0
    rare = fitting._each(logits, labels, 10.0)
    assert (rare[:, 0] > 0).all() and rare[0, 1] < one[0, 1]


def test_no_patient_is_judged_by_a_fit_that_saw_them():
    logits, labels = drawn(60)
    patients = [f"p{i // 2}" for i in range(60)]  # two images each
    rows = fitting.folds(patients)
    assert sorted(np.concatenate(rows).tolist()) == list(range(60))
    assert all({patients[i] for i in a}.isdisjoint({patients[i] for i in b}) for a in rows for b in rows if a is not b)
    fit = fitting.METHODS["a line each, held by 1"]
    before = fitting.left_out(fit, logits, labels, patients)
    changed = labels.copy()
    changed[rows[0]] = 1 - changed[rows[0]]
    after = fitting.left_out(fit, logits, changed, patients)
    assert np.array_equal(before[rows[0]], after[rows[0]]) and not np.allclose(before, after)


def test_the_method_is_the_best_on_patients_left_out():
    readings, studies = cohort()
    own = fitting.fit_calibration(readings, studies, FINDINGS, labeller_for(FINDINGS), "toy")
    assert own.log_loss[own.method] == min(own.log_loss.values()) < own.log_loss["none"]
    assert own.fitted_on.images == own.fitted_on.patients == 60 and own.fitted_on.data == "toy"
    p, labels = fitting.matrices(readings, studies, FINDINGS)
    better = np.stack([f(p[:, i]) for i, f in enumerate(own.findings.values())], 1)
    assert log_loss(labels, better) < log_loss(labels, p)
    assert [(f.present, f.known) for f in own.findings.values()] == [(int(c.sum()), 60) for c in labels.T]
    assert own.sides == ("pleural effusion",) and own.doubt_stated is None  # nobody wrote a report
    assert own.method in fitting.told(own)


def test_what_it_was_fitted_on_has_a_fingerprint():
    readings, studies = cohort()
    first, again, other = (
        fitting.fit_calibration(*rows, FINDINGS, labeller_for(FINDINGS), "toy").fitted_on.fingerprint
        for rows in ((readings, studies), (readings, studies), (readings[1:], studies[1:]))
    )
    assert first == again != other


def test_thresholds_of_doubt_come_from_reports():
    _, labels = drawn(60)
    # Every report states an effusion and denies a pneumothorax: wrong as often as the truth is the other way.
    readings, studies = cohort(reports=["There is a small pleural effusion. No pneumothorax is seen."] * 60)
    own = fitting.fit_calibration(readings, studies, FINDINGS, labeller_for(FINDINGS), "toy")
    assert own.doubt_stated is not None and own.doubt_denied is not None
    p, known = fitting.matrices(readings, studies, FINDINGS)
    claims = fitting.judged_claims([r.report for r in readings], p, known, FINDINGS, labeller_for(FINDINGS))
    assert [c.finding for c in claims] == ["pleural effusion", "pneumothorax"] * 60
    assert [c.wrong for c in claims if c.stated] == (labels[:, 1] == 0).tolist()
    assert [c.wrong for c in claims if not c.stated] == (labels[:, 2] == 1).tolist()


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=10, max_size=40), st.booleans())
def test_the_threshold_has_the_best_f1(rows, below):
    p, wrong = np.array([v / 20 for v, _ in rows]), np.array([w for _, w in rows])

    def f1(marked) -> float:
        return 2 * (marked & wrong).sum() / (marked.sum() + wrong.sum())

    found = fitting.best_threshold(p.tolist(), wrong.tolist(), below)
    if min(wrong.sum(), (~wrong).sum()) < fitting.LEAST_CASES or len(set(p)) == 1:
        assert found is None
    else:
        values = np.unique(p)
        tried = [f1(p < t if below else p > t) for t in (values[1:] + values[:-1]) / 2]
        assert f1(p < found if below else p > found) == pytest.approx(max(tried))


@pytest.mark.parametrize(
    ("n", "said"), [(fitting.LEAST_IMAGES - 1, "39 validation images are too few"), (60, "no finding is known")]
)
def test_too_few_patients_are_said(n, said):
    readings, studies = cohort(n)
    if n == 60:
        studies = [Study(s.image_id, s.patient_id, "s", "i.png", "validate", labels={"Nodule": 1}) for s in studies]
    with pytest.raises(UserError, match=said):
        fitting.fit_calibration(readings, studies, FINDINGS, labeller_for(FINDINGS), "toy")
