"""Scores: pure functions over numpy arrays.

Shapes: N rows (images or questions), M training rows, F findings, H x W pixels.
Every function leaves out what cannot be measured (NaN) rather than guess a value for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from llmcxr.foundation.randomness import stream

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


# ------------------------------------------------------------------------------------------------ findings in reports


@dataclass(frozen=True)
class F1Scores:
    """`per_finding` [F] is NaN where the reference has no positive; `macro` is the mean of the others."""

    micro: float
    macro: float
    per_finding: Floats


def micro_macro_f1(reference: ArrayLike, predicted: ArrayLike) -> F1Scores:
    """F1 of findings named in generated reports against those in the references, both [N, F] boolean.

    Micro-F1 pools the counts over all findings, macro-F1 averages the findings (the "CheXbert F1" of Smit et al., EMNLP
    2020, and Miura et al., NAACL 2021, is this on CheXbert's labels). Findings without a positive in the reference are
    left out of macro, because their F1 is 0 or undefined whatever the model does; their false alarms count in micro.
    Micro is NaN where neither side names anything. Raises `ValueError` on unequal shapes.
    """
    truth, answer = np.asarray(reference, bool), np.asarray(predicted, bool)
    if truth.shape != answer.shape or truth.ndim != 2:
        raise ValueError(f"reference {truth.shape} and predicted {answer.shape} should both be [N, F]")
    both = (truth & answer).sum(0)
    total = truth.sum(0) + answer.sum(0)  # 2 TP + FP + FN
    has_positive = truth.any(0)
    per_finding = np.where(has_positive, 2 * both / np.maximum(total, 1), np.nan)
    micro = 2 * both.sum() / total.sum() if total.sum() else float("nan")
    return F1Scores(float(micro), _mean(per_finding), per_finding)


# --------------------------------------------------------------------------------------------------------- ranking


@dataclass(frozen=True)
class AurocScores:
    """`per_finding` [F] is NaN where too few positives or negatives are known; `mean` is over the others."""

    mean: float
    per_finding: Floats
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


def auroc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve of `score` [N] for binary `truth` [N]; ties count half.

    Mann-Whitney form (Hanley and McNeil, Radiology 1982). NaN without both classes.
    """
    positive = np.asarray(truth) == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = rankdata(np.asarray(score, float))[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def mean_auroc(truth: ArrayLike, score: ArrayLike, minimum: int = 5) -> AurocScores:
    """AUROC of each finding and its mean over findings with at least `minimum` known positives and negatives.

    `truth` [N, F] holds 1 or 0, and -1 or NaN where it is not known; `score` [N, F] any real number (NaN: not scored).
    Raises `ValueError` on unequal shapes.
    """
    labels, scores = np.asarray(truth, float), np.asarray(score, float)
    if labels.shape != scores.shape or labels.ndim != 2:
        raise ValueError(f"truth {labels.shape} and score {scores.shape} should both be [N, F]")
    scored = ~np.isnan(scores)
    positives = ((labels == 1) & scored).sum(0)
    negatives = ((labels == 0) & scored).sum(0)
    per_finding = np.full(labels.shape[1], np.nan)
    for f in np.flatnonzero(np.minimum(positives, negatives) >= max(minimum, 1)):
        known = scored[:, f] & np.isin(labels[:, f], (0, 1))
        per_finding[f] = auroc(labels[known, f], scores[known, f])
    return AurocScores(_mean(per_finding), per_finding, positives, negatives)


# ------------------------------------------------------------------------------------------------------ uncertainty


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    patients: Sequence[str],
    n: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic when patients are drawn anew (Efron and Tibshirani, 1993, ch. 13).

    `statistic(rows)` gets row numbers, those of a patient drawn twice given twice; `patients` [N] names each row's
    patient. Whole patients are drawn because images of one patient are alike. For a paired comparison let `statistic`
    return the difference of two systems on the same rows. Draws in which it is NaN are left out; (NaN, NaN) if all are.
    """
    groups = list(pd.Series(np.arange(len(patients))).groupby(np.asarray(patients, dtype=str)).indices.values())
    if not groups:
        return float("nan"), float("nan")
    random = stream(seed, "bootstrap")
    draws = np.empty(n)
    for i in range(n):
        chosen = random.integers(len(groups), size=len(groups))
        draws[i] = statistic(np.concatenate([groups[g] for g in chosen]))
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# -------------------------------------------------------------------------------------------------------- questions


def normalize_answer(answer: str) -> str:
    """Lower case without punctuation and articles (as SQuAD's script does); "yes"/"no" for what begins with it."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    if words and words[0] in ("yes", "no"):
        return words[0]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


@dataclass(frozen=True)
class VqaScores:
    """Shares in [0, 1]; NaN where there is nothing to count.

    `balanced_accuracy`: mean of the recalls of "yes" and of "no", over questions whose reference is one of them.
    `majority_accuracy`: of always giving the commonest training answer. `auroc`: of p(yes), pooled over questions.
    """

    accuracy: float
    balanced_accuracy: float
    majority_accuracy: float
    auroc: float
    by_kind: dict[str, float]
    count_by_kind: dict[str, int]
    n: int


def majority_answers(frame: pd.DataFrame, training: pd.DataFrame) -> list[str]:
    """The commonest training answer to each question of `frame`, normalised; "" where training has none.

    Yes/no questions take the answer that is commonest for the same question text (where training has it), others that
    of their kind. Both frames have the columns kind, question and reference. Ties go to the first in the alphabet.
    """

    def commonest(keys: pd.Series, answers: pd.Series) -> dict[str, str]:
        counts: dict[str, Counter[str]] = {}
        for key, answer in zip(keys, answers, strict=True):
            counts.setdefault(key, Counter())[answer] += 1
        return {key: min(c, key=lambda a: (-c[a], a)) for key, c in counts.items()}

    answers = training["reference"].map(normalize_answer)
    is_yes_no = answers.isin(["yes", "no"])
    by_question = commonest(training["question"][is_yes_no], answers[is_yes_no])
    by_kind = commonest(training["kind"], answers)
    return [
        by_question.get(question, by_kind.get(kind, ""))
        for question, kind in zip(frame["question"], frame["kind"], strict=True)
    ]


def vqa_right(frame: pd.DataFrame) -> Bools:
    """[N]: whether response and reference are equal after `normalize_answer` (columns response, reference)."""
    return (frame["response"].map(normalize_answer) == frame["reference"].map(normalize_answer)).to_numpy(bool)


def balanced_accuracy(reference: NDArray[np.str_], right: Bools) -> float:
    """Mean of the recalls of "yes" and of "no"; NaN where one of them is never the reference. `reference` is normalised."""
    recalls = [right[reference == a].mean() if (reference == a).any() else np.nan for a in ("yes", "no")]
    return float(np.mean(recalls))


def vqa_scores(frame: pd.DataFrame, training: pd.DataFrame) -> VqaScores:
    """Score answers to questions about images.

    `frame` has one row a question: kind, question, reference, response, and p_yes (NaN where not asked) if it is known.
    `training` has kind, question and reference of the training questions, for the majority answer.
    """
    reference = frame["reference"].map(normalize_answer).to_numpy(str)
    right = vqa_right(frame)
    majority = np.asarray(majority_answers(frame, training), dtype=str) == reference
    area = float("nan")
    if "p_yes" in frame:
        p_yes = pd.to_numeric(frame["p_yes"]).to_numpy(float)
        asked = np.isin(reference, ("yes", "no")) & ~np.isnan(p_yes)
        area = auroc(reference[asked] == "yes", p_yes[asked])
    kinds = frame["kind"].to_numpy(str)
    return VqaScores(
        accuracy=_mean(right.astype(float)),
        balanced_accuracy=balanced_accuracy(reference, right),
        majority_accuracy=_mean(majority.astype(float)),
        auroc=area,
        by_kind={str(k): float(right[kinds == k].mean()) for k in np.unique(kinds)},
        count_by_kind={str(k): int((kinds == k).sum()) for k in np.unique(kinds)},
        n=len(frame),
    )


# ------------------------------------------------------------------------------------------------- trivial baselines


@dataclass(frozen=True)
class ConstantPrediction:
    """The same findings for every image: `findings` [F] and the micro-F1 that this reaches."""

    findings: Bools
    train_micro_f1: float
    test_micro_f1: float


def best_constant_prediction(train: ArrayLike, test: ArrayLike) -> ConstantPrediction:
    """The set of findings that, said of every image, has the best micro-F1 on `train` [M, F]; scored on `test` [N, F].

    Findings are added from the commonest on. Among sets of one size the commonest findings have most true positives and
    equal false ones, so the best of these F sets is the best of all 2^F. A model whose reports do not beat it has not
    read the image.
    """
    train, test = np.asarray(train, bool), np.asarray(test, bool)
    order = np.argsort(-train.sum(0), kind="stable")
    hits = np.cumsum(train.sum(0)[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) * len(train) + max(train.sum(), 1))
    findings = np.zeros(train.shape[1], bool)
    findings[order[: int(np.argmax(f1)) + 1]] = True
    predicted = np.broadcast_to(findings, test.shape)
    return ConstantPrediction(findings, float(f1.max()), micro_macro_f1(test, predicted).micro)


def most_common_report(reports: Sequence[str]) -> str:
    """The report that occurs most often, blanks at its ends ignored; ties go to the first in the alphabet."""
    counts = Counter(report.strip() for report in reports)
    return min(counts, key=lambda report: (-counts[report], report))


def shuffled(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Row numbers [N] that give each row another row's reference: a report of the right style about the wrong image.

    No row keeps its own (for n > 1).
    """
    order = stream(seed, "shuffled references").permutation(n)
    rows = np.empty(n, np.int64)
    rows[order] = np.roll(order, 1)
    return rows


# ------------------------------------------------------------------------------------------------------ drawn images


_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale on, as published


def _windowed(image: Floats) -> Floats:
    return gaussian_filter(image, sigma=1.5, truncate=3.5)  # 11 x 11 pixels, as published


def _ssim_parts(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Luminance and contrast-structure maps [H, W] of SSIM (K1 = 0.01, K2 = 0.03) for images in [0, 1]."""
    mean_a, mean_b = _windowed(a), _windowed(b)
    product, c1, c2 = mean_a * mean_b, 0.01**2, 0.03**2
    squares = mean_a**2 + mean_b**2
    variances = _windowed(a**2) + _windowed(b**2) - squares
    covariance = _windowed(a * b) - product
    return (2 * product + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2)


def ssim(a: ArrayLike, b: ArrayLike) -> float:
    """SSIM of two images [H, W] in [0, 1] (Wang et al., IEEE TIP 2004)."""
    luminance, structure = _ssim_parts(np.asarray(a, float), np.asarray(b, float))
    return float((luminance * structure).mean())


def ms_ssim(a: ArrayLike, b: ArrayLike) -> float:
    """Multi-scale SSIM of two images [H, W] in [0, 1] (Wang et al., Asilomar 2003).

    As many of the five scales as leave a side of 11 pixels, their weights made to sum to 1; the luminance of the coarsest.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    weights = [w for k, w in enumerate(_SCALE_WEIGHTS) if min(x.shape) >> k >= 11] or [1.0]
    result = 1.0
    for k, weight in enumerate(weights):
        luminance, structure = _ssim_parts(x, y)
        value = (luminance * structure).mean() if k == len(weights) - 1 else structure.mean()
        result *= max(0.0, float(value)) ** (weight / sum(weights))
        H, W = (side // 2 * 2 for side in x.shape)
        x, y = (z[:H, :W].reshape(H // 2, 2, W // 2, 2).mean((1, 3)) for z in (x, y))
    return result


def shifted_with_noise(image: ArrayLike, seed: int = 0, share: float = 0.02) -> Floats:
    """`image` [H, W] in [0, 1] moved by `share` of its sides (edges repeated), with noise of that deviation: still the same patient."""
    x = np.asarray(image, float)
    dy, dx = (max(1, round(share * side)) for side in x.shape)
    moved = np.pad(x, ((dy, 0), (dx, 0)), mode="edge")[: x.shape[0], : x.shape[1]]
    return np.clip(moved + share * stream(seed, "noise").normal(size=x.shape), 0, 1)


def mean_pairwise_ssim(images: ArrayLike, pairs: int = 500, seed: int = 0) -> float:
    """Likeness of drawn images to each other: mean SSIM over pairs; 1 means that all are the same.

    `images` [N, H, W] in [0, 1], over all pairs or `pairs` drawn ones. It speaks of variety only beside the same number
    for real images. NaN for fewer than two images.
    """
    stack = np.asarray(images, float)
    left, right = np.triu_indices(len(stack), 1)
    if not left.size:
        return float("nan")
    if left.size > pairs:
        chosen = stream(seed, "ssim pairs").choice(left.size, pairs, replace=False)
        left, right = left[chosen], right[chosen]
    return float(np.mean([ssim(stack[a], stack[b]) for a, b in zip(left.tolist(), right.tolist(), strict=True)]))
