"""Scores against values worked out by hand, against scikit-learn, and against what must not change them."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from llmcxr.metrics.scores import (
    auroc,
    balanced_accuracy,
    best_constant_prediction,
    bootstrap_interval,
    commonest,
    mean_auroc,
    mean_auroc_interval,
    micro_macro_f1,
    most_common_report,
    normalize_answer,
    shuffled,
    token_f1,
)


def test_f1_by_hand():
    reference = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    predicted = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0]], bool)
    scores = micro_macro_f1(reference, predicted)
    # finding 0: TP 1, FN 1 -> 2/3; finding 1: TP 2, FP 1 -> 4/5; finding 2: no positive; pooled: TP 3, FP 2, FN 1 -> 6/9
    assert scores.per_finding[:2] == pytest.approx([2 / 3, 4 / 5])
    assert np.isnan(scores.per_finding[2])
    assert scores.macro == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores.micro == pytest.approx(6 / 9)


def test_f1_agrees_with_sklearn():
    random = np.random.default_rng(0)
    reference, predicted = random.random((200, 6)) < 0.3, random.random((200, 6)) < 0.4
    scores = micro_macro_f1(reference, predicted)
    assert scores.micro == pytest.approx(f1_score(reference, predicted, average="micro"))
    assert scores.macro == pytest.approx(f1_score(reference, predicted, average="macro"))


def test_f1_leaves_out_what_is_not_known():
    reference = np.array([[1, np.nan], [0, 1], [np.nan, 0]])
    predicted = np.array([[1, 1], [1, 1], [1, 0]], bool)
    # finding 0: TP 1, FP 1; finding 1: TP 1. What is said where the label is NaN is neither right nor wrong.
    assert micro_macro_f1(reference, predicted).per_finding == pytest.approx([2 / 3, 1])
    assert micro_macro_f1(reference, predicted).micro == pytest.approx(4 / 5)


def test_f1_edges():
    nothing = np.zeros((3, 2), bool)
    assert np.isnan(micro_macro_f1(nothing, nothing).micro)
    assert micro_macro_f1(nothing, ~nothing).micro == 0
    assert micro_macro_f1(~nothing, ~nothing).micro == micro_macro_f1(~nothing, ~nothing).macro == 1
    with pytest.raises(ValueError, match="should both be"):
        micro_macro_f1(nothing, nothing[:2])


def test_auroc_agrees_with_sklearn_also_with_ties():
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, (300, 4))
    score = np.round(random.random((300, 4)) + 0.2 * truth, 1)
    expected = [roc_auc_score(truth[:, f], score[:, f]) for f in range(4)]
    scores = mean_auroc(truth, score)
    assert scores.per_finding == pytest.approx(expected)
    assert scores.mean == pytest.approx(np.mean(expected))


def test_auroc_leaves_out_unknown_and_rare():
    truth = np.array([[1, 1], [1, 0], [0, 0], [0, 0], [-1, 0], [np.nan, 0]])
    score = np.array([[3, 1], [2, 2], [1, 0], [0, 0], [9, 0], [9, 0]], float)
    scores = mean_auroc(truth, score, minimum=2)
    assert scores.per_finding[0] == 1.0  # the 9s are of unknown truth
    assert np.isnan(scores.per_finding[1])  # one positive only
    assert scores.mean == 1.0
    assert scores.positives.tolist() == [2, 1]
    assert scores.negatives.tolist() == [2, 5]
    assert np.isnan(mean_auroc(truth, score).mean)  # five are asked for by default


def test_auroc_depends_only_on_order():
    random = np.random.default_rng(2)
    truth, score = random.integers(0, 2, 100), random.normal(size=100)
    assert auroc(truth, score) == pytest.approx(auroc(truth, np.exp(3 * score)))
    assert auroc(truth, score) == pytest.approx(1 - auroc(truth, -score))
    assert auroc(truth, np.zeros(100)) == 0.5


def test_bootstrap_covers_the_mean_and_is_repeatable():
    values = np.random.default_rng(3).normal(5, 2, 400)
    patients = [f"p{i}" for i in range(400)]
    low, high = bootstrap_interval(lambda rows: values[rows].mean(), patients, seed=7)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)  # 1.96 standard errors to either side
    assert (low, high) == bootstrap_interval(lambda rows: values[rows].mean(), patients, seed=7)
    assert (low, high) != bootstrap_interval(lambda rows: values[rows].mean(), patients, seed=8)


def test_bootstrap_draws_patients_not_rows():
    values = np.repeat(np.random.default_rng(4).normal(size=40), 10)  # ten equal rows a patient tell no more than one
    by_patient = bootstrap_interval(lambda rows: values[rows].mean(), [str(i // 10) for i in range(400)])
    by_row = bootstrap_interval(lambda rows: values[rows].mean(), [str(i) for i in range(400)])
    assert by_patient[1] - by_patient[0] > 2 * (by_row[1] - by_row[0])


def test_the_interval_of_a_mean_auroc_keeps_its_findings():
    """A finding read perfectly in 6 of 30 patients, and one read at chance in half of them: the mean is 0.75.

    Draws with fewer than 5 positives of the first must not become those of the second alone, whose mean is 0.5.
    """
    truth = np.zeros((30, 2))
    truth[:6, 0], truth[::2, 1] = 1, 1
    score = np.stack([truth[:, 0], np.zeros(30)], axis=1)
    assert mean_auroc(truth, score).mean == 0.75
    assert mean_auroc_interval(truth, score, [f"p{i}" for i in range(30)]) == (0.75, 0.75)
    assert np.isnan(mean_auroc_interval(truth[:4], score[:4], list("abcd"))).all()


def test_bootstrap_without_a_value():
    assert np.isnan(bootstrap_interval(lambda rows: float("nan"), ["a", "b"])).all()
    assert np.isnan(bootstrap_interval(lambda rows: 1.0, [])).all()


@pytest.mark.parametrize(
    ("answer", "expected", "elsewhere"),
    [
        ("Yes, there is.", "yes", "yes there is"),
        ("NO", "no", "no"),
        ("No effusion.", "no", "no effusion"),
        ("The left lung.", "left lung", "left lung"),
        ("None", "none", "none"),
        ("", "", ""),
        ("!", "", ""),
    ],
)
def test_normalize_answer(answer, expected, elsewhere):
    assert normalize_answer(answer, yes_no=True) == expected
    assert normalize_answer(answer, yes_no=False) == elsewhere


def test_commonest():
    assert commonest(["a", "a", "b", "a"], ["y", "x", "z", "x"]) == {"a": "x", "b": "z"}
    assert commonest(["a", "a"], ["y", "x"]) == {"a": "x"} and commonest([], []) == {}


def test_best_constant_is_the_best_of_all_sets():
    random = np.random.default_rng(5)
    train = random.random((80, 6)) < np.array([0.5, 0.35, 0.3, 0.2, 0.1, 0.05])
    test = random.random((50, 6)) < 0.3
    result = best_constant_prediction(train, test)
    sets = [np.array(bits, bool) for bits in itertools.product([0, 1], repeat=6)]
    best = max(micro_macro_f1(train, np.broadcast_to(s, train.shape)).micro for s in sets)
    assert result.train_micro_f1 == pytest.approx(best)
    assert micro_macro_f1(train, np.broadcast_to(result.findings, train.shape)).micro == pytest.approx(best)
    assert result.test_micro_f1 == micro_macro_f1(test, np.broadcast_to(result.findings, test.shape)).micro


def test_best_constant_where_labels_are_missing():
    random = np.random.default_rng(6)
    train = (random.random((60, 5)) < np.array([0.5, 0.4, 0.3, 0.2, 0.1])).astype(float)
    train[random.random((60, 5)) < np.array([0.9, 0.1, 0.5, 0.0, 0.2])] = np.nan
    result = best_constant_prediction(train, train)
    sets = [np.array(bits, bool) for bits in itertools.product([0, 1], repeat=5)]
    best = max(micro_macro_f1(train, np.broadcast_to(s, train.shape)).micro for s in sets[1:])
    assert result.train_micro_f1 == result.test_micro_f1 == pytest.approx(best)


def test_most_common_report_and_shuffled():
    assert most_common_report(["Normal.", "Effusion.", " Normal. ", "Effusion.", "Normal."]) == "Normal."
    rows = shuffled(50, seed=3)
    assert sorted(rows) == list(range(50))
    assert not (rows == np.arange(50)).any()
    assert (rows == shuffled(50, seed=3)).all()
    assert (rows != shuffled(50, seed=4)).any()


def test_balanced_accuracy_by_hand():
    reference = np.array(["yes", "yes", "no", "left"])
    assert balanced_accuracy(reference, np.array([True, False, True, False])) == 0.75
    assert np.isnan(balanced_accuracy(reference[:2], np.array([True, False])))


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The left lower lobe.", "left lower lobe", 1.0),
        ("Left lobe", "left lower lobe", 0.8),
        ("left left", "left", 2 / 3),  # each word as often as both have it
        ("right", "left", 0.0),
        ("", "left", 0.0),
        ("", "The", 1.0),
    ],
)
def test_token_f1_by_hand(answer, reference, f1):
    assert token_f1(answer, reference) == pytest.approx(f1) == token_f1(reference, answer)
