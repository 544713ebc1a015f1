"""Calibration error, Brier score and reliability: against scikit-learn, by hand, and what no order may change."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from llmcxr.metrics.calibration import (
    ReliabilityBin,
    brier_score,
    confidence,
    expected_calibration_error,
    log_loss,
    reliability,
)


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and p of n predictions, all p different, and more certain than the truth."""
    random = np.random.default_rng(seed)
    p = random.uniform(size=n)
    return (random.uniform(size=n) < 0.3 + 0.4 * p).astype(float), p


@pytest.mark.parametrize(("n", "bins"), [(150, 15), (300, 10), (40, 5), (15, 15)])
def test_bins_are_those_of_scikit_learn(n, bins):
    truth, p = drawn(n)
    observed, predicted = calibration_curve(truth, p, n_bins=bins, strategy="quantile")
    found = reliability(truth, p, bins)
    assert [b.count for b in found] == [n // bins] * bins
    assert np.allclose([b.observed for b in found], observed) and np.allclose([b.predicted for b in found], predicted)
    assert expected_calibration_error(truth, p, bins) == pytest.approx(np.abs(observed - predicted).mean())


def test_scores_are_those_of_scikit_learn():
    truth, p = drawn(200)
    assert brier_score(truth, p) == pytest.approx(sklearn.metrics.brier_score_loss(truth, p))
    assert log_loss(truth, p) == pytest.approx(sklearn.metrics.log_loss(truth, p))
    assert np.isfinite(log_loss([1, 0], [0.0, 1.0]))


def test_by_hand():
    truth, p = [0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9]
    assert reliability(truth, p, 2) == [ReliabilityBin(0.2, 0.0, 2), ReliabilityBin(pytest.approx(0.8), 1.0, 2)]
    assert expected_calibration_error(truth, p, 2) == pytest.approx(0.2)
    assert brier_score(truth, p) == pytest.approx((0.01 + 0.09 + 0.09 + 0.01) / 4)
    assert expected_calibration_error([1, 0, 0, 0], [0.25] * 4) == 0  # a frequency, told of each


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.1, 0.5, 0.5001, 0.9, 1.0])), min_size=1),
    st.integers(1, 20),
    st.randoms(),
)
def test_order_changes_nothing_and_nothing_is_lost(rows, bins, random):
    again = random.sample(rows, len(rows))
    one, other = (reliability(*zip(*part, strict=True), bins) for part in (rows, again))
    assert [b.count for b in one] == [b.count for b in other] and len(one) <= bins
    assert np.allclose([(b.predicted, b.observed) for b in one], [(b.predicted, b.observed) for b in other])
    assert sum(b.count for b in one) == len(rows)
    assert sum(b.count * b.observed for b in one) == pytest.approx(sum(truth for truth, _ in rows))
    assert 0 <= expected_calibration_error(*zip(*rows, strict=True), bins) <= 1


def test_what_is_not_known_takes_no_part():
    truth, p = drawn(60)
    more = np.append(truth, [np.nan, 1]), np.append(p, [0.9, np.nan])
    for score in (expected_calibration_error, brier_score, log_loss):
        assert score(*more) == score(truth, p)
        assert np.isnan(score([np.nan], [0.5])) and np.isnan(score([], []))
    assert reliability([], []) == []


@pytest.mark.parametrize(("truth", "p"), [([1, 0], [0.5]), ([2], [0.5]), ([1], [1.5]), ([-1], [0.5]), ([1], [-0.1])])
def test_what_is_no_probability_is_refused(truth, p):
    with pytest.raises(ValueError, match="should be"):
        reliability(truth, p)


def test_confidence_is_that_of_the_likeliest():
    right, sure = confidence([0, 2], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    assert right.tolist() == [1, 0] and sure.tolist() == [0.7, 0.6]
    assert [len(x) for x in confidence([], np.zeros((0, 3)))] == [0, 0]
