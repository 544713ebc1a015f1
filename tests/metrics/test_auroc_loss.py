"""Losses of AUROC by a second way: scikit-learn, and the bootstrap that draws rows one by one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from llmcxr.metrics.auroc_loss import auroc_loss, patient_draws, weighted_auroc
from llmcxr.metrics.scores import bootstrap_interval, mean_auroc, percentiles

N, F = 60, 3


def cases():
    """Labels with unknown ones, scores before and after (coarse, so that some tie), patients of one to three images."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (N, F)).astype(float)
    before = labels + random.normal(0, 1, (N, F)).round(1)
    after = labels + random.normal(0, 2, (N, F)).round(1)
    labels[random.random((N, F)) < 0.1] = np.nan
    labels[:, 2] = np.where(np.arange(N) < 3, 1, 0)  # too few positives
    return labels, before, after, [f"p{i}" for i in np.sort(random.integers(0, 25, N))]


def test_weighted_auroc_is_sklearns():
    labels, before, _, patients = cases()
    weights = patient_draws(patients, 5)
    known = ~np.isnan(labels[:, 0])
    expected = [roc_auc_score(labels[known, 0], before[known, 0], sample_weight=w[known]) for w in weights]
    np.testing.assert_allclose(weighted_auroc(labels[known, 0], before[known, 0], weights[:, known]), expected)


def test_losses_and_intervals_are_those_of_row_by_row_draws():
    labels, before, after, patients = cases()
    lost = auroc_loss(labels, before, after, patients, n=60)
    known = ~np.isnan(labels)
    for f in range(2):
        own = [roc_auc_score(labels[known[:, f], f], s[known[:, f], f]) for s in (before, after)]
        assert lost.loss[f] == pytest.approx(own[0] - own[1])
    assert np.isnan(lost.loss[2]) and np.isnan(lost.intervals[2][0]) and lost.positives[2] == 3
    assert lost.mean_before == pytest.approx(mean_auroc(labels, before).mean)
    assert lost.mean_loss == pytest.approx(lost.loss[:2].mean())

    def of_finding(f):
        return lambda rows: np.subtract(*(mean_auroc(labels[rows], s[rows], 1).per_finding[f] for s in (before, after)))

    for f in range(2):
        assert lost.intervals[f] == pytest.approx(bootstrap_interval(of_finding(f), patients, 60))
    both = bootstrap_interval(lambda rows: (of_finding(0)(rows) + of_finding(1)(rows)) / 2, patients, 60)
    assert lost.mean_interval == pytest.approx(both)
    assert both[0] < lost.mean_loss < both[1]


def test_nothing_is_lost_where_nothing_changes_and_nothing_is_known_of_no_label():
    labels, before, _, patients = cases()
    lost = auroc_loss(labels, before, before * 3 - 1, patients, n=20)
    assert lost.mean_loss == 0 and lost.mean_interval == (0, 0)
    nothing = auroc_loss(labels[:, :0], before[:, :0], before[:, :0], patients, n=20)
    assert np.isnan(nothing.mean_loss) and np.isnan(nothing.mean_interval[0])
    assert np.isnan(percentiles([np.nan])[0])
