"""What a way through few numbers costs a classifier: AUROC of originals minus AUROC of what is painted again, by finding.

All draws of patients are worked out at once: a draw weights each image by how often its patient was drawn, and the AUROC of
weighted images is a product of matrices.

Shapes: N images, F findings, D draws of patients. Labels [N, F] are 1 present, 0 absent, NaN not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcxr.foundation.randomness import stream
from llmcxr.metrics.scores import Floats, Interval, mean, mean_auroc, percentiles


def patient_draws(patients: Sequence[str], n: int = 500, seed: int = 0) -> Floats:
    """How often each image [N] counts in each of `n` draws of patients, [D, N]: the draws of `scores.bootstrap_interval`."""
    _, own = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    count = int(own.max()) + 1 if len(own) else 0
    random = stream(seed, "bootstrap")
    drawn = [np.bincount(random.integers(count, size=count), minlength=count) for _ in range(n)] if count else []
    return np.array(drawn, float).reshape(n if count else 0, count)[:, own]


def weighted_auroc(truth: ArrayLike, score: ArrayLike, weights: ArrayLike) -> Floats:
    """AUROC [D] of `score` [N] for binary `truth` [N] where image i counts `weights[d, i]` times; ties count half.

    NaN for a draw without both classes.
    """
    positive, values, w = np.asarray(truth) == 1, np.asarray(score, float), np.asarray(weights, float)
    above, level = values[positive][:, None], values[~positive]
    wins = (above > level) + 0.5 * (above == level)
    own, others = w[:, positive], w[:, ~positive]
    pairs = own.sum(1) * others.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(pairs > 0, ((own @ wins) * others).sum(1) / pairs, np.nan)


def auroc_draws(truth: ArrayLike, score: ArrayLike, weights: ArrayLike, minimum: int = 5) -> tuple[Floats, Floats]:
    """(AUROC of each finding [F], the same in each draw [D, F]) of scores [N, F], with `patient_draws` as `weights` [D, N].

    NaN for findings with fewer than `minimum` known positives or negatives, as `scores.mean_auroc`.
    """
    labels, values, w = np.asarray(truth, float), np.asarray(score, float), np.asarray(weights, float)
    whole = mean_auroc(labels, values, minimum).per_finding
    draws = np.full((len(w), labels.shape[1]), np.nan)
    for f in np.flatnonzero(~np.isnan(whole)):
        known = ~np.isnan(labels[:, f]) & ~np.isnan(values[:, f])
        draws[:, f] = weighted_auroc(labels[known, f], values[known, f], w[:, known])
    return whole, draws


@dataclass(frozen=True)
class AurocLoss:
    """`before`, `after` and `loss` [F] by finding (NaN where it cannot be measured), each loss with its interval; their means."""

    before: Floats
    after: Floats
    intervals: list[Interval]
    mean_before: float
    mean_loss: float
    mean_interval: Interval
    positives: NDArray[np.int64]

    @property
    def loss(self) -> Floats:
        """AUROC that was lost, by finding; below 0 where the painted images are told apart better."""
        return self.before - self.after


def auroc_loss(
    truth: ArrayLike, before: ArrayLike, after: ArrayLike, patients: Sequence[str], n: int = 500, seed: int = 0
) -> AurocLoss:
    """What a classifier's `before` [N, F], of originals, told better than its `after` [N, F], of the same images painted again.

    Intervals (95 %) by drawing patients, the same for both. That of the mean takes draws in which every finding that is measured has both
    classes left: the mean of others is another quantity.
    """
    weights = patient_draws(patients, n, seed)
    (own, own_draws), (other, other_draws) = (auroc_draws(truth, score, weights) for score in (before, after))
    lost = own_draws - other_draws
    measured = ~np.isnan(own)
    means = lost[:, measured].mean(1) if measured.any() else np.full(len(lost), np.nan)
    positives = (np.asarray(truth, float) == 1).sum(0)
    columns = [percentiles(column) for column in lost.T]
    return AurocLoss(own, other, columns, mean(own), mean(own - other), percentiles(means), positives)
