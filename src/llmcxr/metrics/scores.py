"""Scores: pure functions over numpy arrays.

F1 and AUROC are ours rather than scikit-learn's (tests hold them to it): intervals need 500 of each, and for 200 images of 17
findings theirs take 4 and 25 ms, these 0.05 and 2; and labels may be unknown here.

Shapes: N rows (images or questions), M training rows, F findings.
Labels [N, F] are 1 present, 0 absent, NaN not known. Every function leaves out what cannot be measured (NaN) rather than guess
a value for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcxr.foundation.randomness import stream

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Interval = tuple[float, float]


def mean(values: ArrayLike) -> float:
    """Mean of what is known; NaN where nothing is."""
    numbers = np.asarray(values, float)
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if known.size else float("nan")


# ------------------------------------------------------------------------------------------------ findings in reports


@dataclass(frozen=True)
class F1Scores:
    """`per_finding` [F] is NaN where the reference has no positive; `macro` is the mean of the others."""

    micro: float
    macro: float
    per_finding: Floats


def micro_macro_f1(reference: ArrayLike, predicted: ArrayLike) -> F1Scores:
    """F1 of findings named in generated reports, bool [N, F], against `reference` labels [N, F].

    What a reference does not know takes no part. Micro-F1 pools the counts over all findings, macro-F1 averages the findings
    (the "CheXbert F1" of Smit et al., EMNLP 2020, and Miura et al., NAACL 2021, is this on CheXbert's labels). Findings without
    a positive in the reference are left out of macro, because their F1 is 0 or undefined whatever the model does; their false
    alarms count in micro. Micro is NaN where neither side names anything. Raises `ValueError` on unequal shapes.
    """
    labels, answer = np.asarray(reference, float), np.asarray(predicted, bool)
    if labels.shape != answer.shape or labels.ndim != 2:
        raise ValueError(f"reference {labels.shape} and predicted {answer.shape} should both be [N, F]")
    truth, answer = labels == 1, answer & ~np.isnan(labels)
    both = (truth & answer).sum(0)
    total = truth.sum(0) + answer.sum(0)  # 2 TP + FP + FN
    per_finding = np.where(truth.any(0), 2 * both / np.maximum(total, 1), np.nan)
    micro = 2 * both.sum() / total.sum() if total.sum() else float("nan")
    return F1Scores(float(micro), mean(per_finding), per_finding)


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
    _, place, count = np.unique(np.asarray(score, float), return_inverse=True, return_counts=True)
    rank = count.cumsum() - (count - 1) / 2  # of each value: the mean of its places
    rank_sum = rank[place][positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def mean_auroc(truth: ArrayLike, score: ArrayLike, minimum: int = 5) -> AurocScores:
    """AUROC of each finding and its mean over findings with at least `minimum` known positives and negatives.

    `truth` [N, F] are labels (-1 is not known, too); `score` [N, F] any real number (NaN: not scored).
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
    return AurocScores(mean(per_finding), per_finding, positives, negatives)


# ------------------------------------------------------------------------------------------------------ uncertainty


def percentiles(draws: ArrayLike, level: float = 0.95) -> Interval:
    """Percentile interval of a statistic [D]; draws in which it is NaN are left out, (NaN, NaN) if all are."""
    known = np.asarray(draws, float)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    patients: Sequence[str],
    n: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic when patients are drawn anew (Efron and Tibshirani, 1993, ch. 13).

    `statistic(rows)` gets row numbers, those of a patient drawn twice given twice; `patients` [N] names each row's
    patient. Whole patients are drawn because images of one patient are alike. For a paired comparison let `statistic`
    return the difference of two systems on the same rows. Draws in which it is NaN are left out; (NaN, NaN) if all are.
    """
    _, first, own = np.unique(np.asarray(patients, dtype=str), return_index=True, return_inverse=True)
    groups = [np.flatnonzero(own == g) for g in range(len(first))]
    if not groups:
        return float("nan"), float("nan")
    random = stream(seed, "bootstrap")
    draws = np.empty(n)
    for i in range(n):
        chosen = random.integers(len(groups), size=len(groups))
        draws[i] = statistic(np.concatenate([groups[g] for g in chosen]))
    return percentiles(draws, level)


def mean_auroc_interval(
    truth: ArrayLike, score: ArrayLike, patients: Sequence[str], n: int = 500, seed: int = 0
) -> Interval:
    """`bootstrap_interval` of `mean_auroc`, always over the findings of the point estimate.

    A draw in which one of them has no positive or no negative left is left out: the mean of the others is another quantity.
    """
    labels, scores = np.asarray(truth, float), np.asarray(score, float)
    taken = np.flatnonzero(~np.isnan(mean_auroc(labels, scores).per_finding))
    if not taken.size:
        return float("nan"), float("nan")
    labels, scores = labels[:, taken], scores[:, taken]
    return bootstrap_interval(
        lambda rows: float(mean_auroc(labels[rows], scores[rows], 1).per_finding.mean()), patients, n, seed
    )


# -------------------------------------------------------------------------------------------------------- questions


def normalize_answer(answer: str, yes_no: bool) -> str:
    """Lower case without punctuation and articles (as SQuAD's script does).

    Of a `yes_no` question only the first word counts where it is yes or no ("Yes, a small one."). Elsewhere it does not: "No
    effusion." and "No pneumothorax." are two answers.
    """
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    if yes_no and words and words[0] in ("yes", "no"):
        return words[0]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that two answers share, each as often as both have it, after `normalize_answer` (SQuAD; Rajpurkar
    et al., EMNLP 2016). Two empty answers are the same."""
    own, wanted = (Counter(normalize_answer(text, False).split()) for text in (answer, reference))
    if not own or not wanted:
        return float(own == wanted)
    return 2 * (own & wanted).total() / (own.total() + wanted.total())


def commonest(keys: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """The commonest answer to each key; ties go to the first in the alphabet."""
    counts: dict[str, Counter[str]] = {}
    for key, answer in zip(keys, answers, strict=True):
        counts.setdefault(key, Counter())[answer] += 1
    return {key: min(c, key=lambda a: (-c[a], a)) for key, c in counts.items()}


def balanced_accuracy(reference: NDArray[np.str_], right: Bools) -> float:
    """Mean of the recalls of "yes" and of "no"; NaN where one of them is never the reference. `reference` is normalised."""
    recalls = [right[reference == a].mean() if (reference == a).any() else np.nan for a in ("yes", "no")]
    return float(np.mean(recalls))


# ------------------------------------------------------------------------------------------------- trivial baselines


@dataclass(frozen=True)
class ConstantPrediction:
    """The same findings for every image: `findings` [F] and the micro-F1 that this reaches."""

    findings: Bools
    train_micro_f1: float
    test_micro_f1: float


def best_constant_prediction(train: ArrayLike, test: ArrayLike) -> ConstantPrediction:
    """The set of findings that, said of every image, has the best micro-F1 on labels `train` [M, F]; scored on `test` [N, F].

    Findings are added from the most prevalent on. A finding belongs to the best set where its share of positives among
    what is known is over half the set's F1, so the best of these F sets is the best of all 2^F. A model whose reports do not
    beat it has not read the image.
    """
    train, test = np.asarray(train, float), np.asarray(test, float)
    positives, known = (train == 1).sum(0), (~np.isnan(train)).sum(0)
    order = np.argsort(-positives / np.maximum(known, 1), kind="stable")
    f1 = 2 * positives[order].cumsum() / np.maximum(known[order].cumsum() + positives.sum(), 1)
    findings = np.zeros(train.shape[1], bool)
    findings[order[: int(np.argmax(f1)) + 1]] = True
    predicted = np.broadcast_to(findings, test.shape)
    return ConstantPrediction(findings, float(f1.max()), micro_macro_f1(test, predicted).micro)


def most_common_report(reports: Sequence[str]) -> str:
    """The report that occurs most often, blanks at its ends ignored; ties go to the first in the alphabet."""
    return commonest([""] * len(reports), [report.strip() for report in reports])[""]


def shuffled(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Row numbers [N] that give each row another row's reference: a report of the right style about the wrong image.

    No row keeps its own (for n > 1).
    """
    order = stream(seed, "shuffled references").permutation(n)
    rows = np.empty(n, np.int64)
    rows[order] = np.roll(order, 1)
    return rows
