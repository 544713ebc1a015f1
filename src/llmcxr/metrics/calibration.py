"""How far probabilities can be taken at their word: calibration error, Brier score, reliability.

Shapes: N predictions, B bins. `truth` [N] is 1, 0 or NaN (not known: left out); `p` [N] lies in [0, 1], NaN where none was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llmcxr.metrics.scores import Floats

BINS = 15  # as in Guo et al., ICML 2017


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about one probability: their mean, the share that came true, and how many they are."""

    predicted: float
    observed: float
    count: int


def _known(truth: ArrayLike, p: ArrayLike) -> tuple[Floats, Floats]:
    labels, values = np.asarray(truth, float).ravel(), np.asarray(p, float).ravel()
    if labels.shape != values.shape:
        raise ValueError(f"truth {np.shape(truth)} and p {np.shape(p)} should be of one shape")
    known = ~np.isnan(labels) & ~np.isnan(values)
    labels, values = labels[known], values[known]
    if not np.isin(labels, (0, 1)).all() or ((values < 0) | (values > 1)).any():
        raise ValueError("truth should be 0, 1 or NaN, and p in [0, 1] or NaN")
    return labels, values


def reliability(truth: ArrayLike, p: ArrayLike, bins: int = BINS) -> list[ReliabilityBin]:
    """Predictions in order of p, in at most `bins` bins of (nearly) the same number; equal p are never told apart.

    Bins of equal mass (Nguyen and O'Connor, EMNLP 2015) because most findings are rare: bins of equal width hold nearly all
    predictions in the first. ValueError for another truth than 0, 1, NaN, for p outside [0, 1], and for unequal shapes.
    """
    labels, values = _known(truth, p)
    if not len(values):
        return []
    unique, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = count.cumsum() - (count + 1) / 2  # mean place of each value
    number = np.minimum(middle * min(bins, len(values)) // len(values), bins - 1).astype(int)[place]
    found = []
    for b in np.unique(number):
        own = number == b
        found.append(ReliabilityBin(float(values[own].mean()), float(labels[own].mean()), int(own.sum())))
    return found


def expected_calibration_error(truth: ArrayLike, p: ArrayLike, bins: int = BINS) -> float:
    """Mean difference of what was predicted and what came true, over the bins of `reliability` by their number; NaN without any.

    Small samples raise it: of perfectly calibrated predictions it is up to about 0.4 * sqrt(bins / N), not 0.
    """
    found = reliability(truth, p, bins)
    total = sum(b.count for b in found)
    return sum(b.count * abs(b.predicted - b.observed) for b in found) / total if total else float("nan")


def brier_score(truth: ArrayLike, p: ArrayLike) -> float:
    """Mean squared difference of probability and truth (Brier, 1950): 0 at best; NaN where nothing is known."""
    labels, values = _known(truth, p)
    return float(((values - labels) ** 2).mean()) if len(values) else float("nan")


def log_loss(truth: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log-likelihood in nats; probabilities nearer to 0 or 1 than 1e-12 count as that. NaN where nothing is known."""
    labels, values = _known(truth, p)
    if not len(values):
        return float("nan")
    values = values.clip(1e-12, 1 - 1e-12)
    return float(-(labels * np.log(values) + (1 - labels) * np.log1p(-values)).mean())


def confidence(answers: Sequence[int], p: ArrayLike) -> tuple[Floats, Floats]:
    """Of answers among several: whether the likeliest is right [N] and its probability [N], for the functions above.

    `answers` [N] are the right columns of `p` [N, C], whose rows sum to 1.
    """
    if not len(answers):
        return np.zeros(0), np.zeros(0)
    values = np.asarray(p, float)
    return (values.argmax(1) == np.asarray(answers)).astype(float), values.max(1).clip(0, 1)
