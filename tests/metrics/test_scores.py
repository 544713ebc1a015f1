"""Scores against values worked out by hand, against scikit-learn, and against what must not change them."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score, roc_auc_score

from llmcxr.metrics.scores import (
    auroc,
    balanced_accuracy,
    best_constant_prediction,
    bootstrap_interval,
    majority_answers,
    mean_auroc,
    mean_pairwise_ssim,
    micro_macro_f1,
    most_common_report,
    ms_ssim,
    normalize_answer,
    shifted_with_noise,
    shuffled,
    ssim,
    vqa_scores,
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


def test_bootstrap_without_a_value():
    assert np.isnan(bootstrap_interval(lambda rows: float("nan"), ["a", "b"])).all()
    assert np.isnan(bootstrap_interval(lambda rows: 1.0, [])).all()


def questions(*rows):
    return pd.DataFrame(rows, columns=["kind", "question", "reference", "response", "p_yes"])


def test_vqa_by_hand():
    training = pd.DataFrame(
        [
            ("presence", "Effusion?", "Yes."),
            ("presence", "Effusion?", "Yes, a small one."),
            ("presence", "Effusion?", "No."),
            ("presence", "Nodule?", "No."),
            ("presence", "Nodule?", "No."),
            ("presence", "Nodule?", "No."),
            ("side", "Which side?", "The left"),
        ],
        columns=["kind", "question", "reference"],
    )
    frame = questions(
        ("presence", "Effusion?", "Yes", "yes, there is", 0.9),  # majority: yes, right
        ("presence", "Effusion?", "No", "Yes", 0.6),  # majority: yes, wrong
        ("presence", "Nodule?", "No", "No.", 0.2),  # majority: no, right
        ("presence", "Mass?", "No", "no", 0.1),  # unseen text: the kind's "no", right
        ("side", "Which side?", "left.", "The left", np.nan),  # majority: left, right
        ("side", "Which lung?", "right", "left", np.nan),  # majority: left, wrong
    )
    assert majority_answers(frame, training) == ["yes", "yes", "no", "no", "left", "left"]
    scores = vqa_scores(frame, training)
    assert scores.n == 6
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.majority_accuracy == pytest.approx(4 / 6)
    assert scores.by_kind == {"presence": 0.75, "side": 0.5}
    assert scores.count_by_kind == {"presence": 4, "side": 2}
    assert scores.balanced_accuracy == pytest.approx((1 + 2 / 3) / 2)
    assert scores.auroc == 1.0


def test_vqa_of_nothing():
    assert np.isnan(vqa_scores(questions(), questions()).accuracy)


def test_vqa_without_yes_no_questions():
    frame = questions(("side", "Which side?", "left", "left", np.nan))
    scores = vqa_scores(frame, frame)
    assert scores.accuracy == 1
    assert np.isnan(scores.balanced_accuracy)
    assert np.isnan(scores.auroc)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes, there is.", "yes"), ("NO", "no"), ("The left lung.", "left lung"), ("None", "none"), ("", ""), ("!", "")],
)
def test_normalize_answer(answer, expected):
    assert normalize_answer(answer) == expected


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


def test_most_common_report_and_shuffled():
    assert most_common_report(["Normal.", "Effusion.", " Normal. ", "Effusion.", "Normal."]) == "Normal."
    rows = shuffled(50, seed=3)
    assert sorted(rows) == list(range(50))
    assert not (rows == np.arange(50)).any()
    assert (rows == shuffled(50, seed=3)).all()
    assert (rows != shuffled(50, seed=4)).any()


def test_ssim():
    random = np.random.default_rng(6)
    image = random.random((32, 32))
    assert mean_pairwise_ssim([image, image, image]) == pytest.approx(1)
    noise = random.random((4, 32, 32))
    nearly = image + 0.02 * noise
    assert mean_pairwise_ssim(noise) < 0.2 < 0.9 < mean_pairwise_ssim(nearly) < 1
    # two flat images: only the luminance term is left
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert mean_pairwise_ssim([np.full((16, 16), 0.2), np.full((16, 16), 0.8)]) == pytest.approx(expected)
    assert np.isnan(mean_pairwise_ssim([image]))
    assert mean_pairwise_ssim(noise, pairs=2) == mean_pairwise_ssim(noise, pairs=2)
    assert mean_pairwise_ssim(noise[:2]) == pytest.approx(ssim(noise[0], noise[1]))


def test_ssim_over_scales():
    random = np.random.default_rng(1)
    image = gaussian_filter(random.random((128, 128)), 4)
    image = (image - image.min()) / np.ptp(image)
    assert ms_ssim(image, image) == pytest.approx(1)
    # One scale is left where a side is below 22 pixels: SSIM itself.
    small = random.random((2, 20, 20))
    assert ms_ssim(*small) == pytest.approx(max(0, ssim(*small)))
    # Two flat images: the luminance of the coarsest of the 4 scales of 128 pixels, to its share of their weights.
    flat = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    weight = 0.2363 / (0.0448 + 0.2856 + 0.3001 + 0.2363)
    assert ms_ssim(np.full((128, 128), 0.2), np.full((128, 128), 0.8)) == pytest.approx(flat**weight)
    # Fine noise hurts SSIM more than MS-SSIM, which mostly looks at coarser scales.
    noisy = np.clip(image + 0.1 * random.normal(size=image.shape), 0, 1)
    assert ssim(image, noisy) < ms_ssim(image, noisy) < 1
    moved = shifted_with_noise(image)
    assert np.array_equal(moved, shifted_with_noise(image)) and not np.array_equal(moved, shifted_with_noise(image, 1))
    assert np.abs(moved[3:, 3:] - image[:-3, :-3]).mean() == pytest.approx(0.016, abs=0.004)  # 0.02 x sqrt(2 / pi)
    other = gaussian_filter(random.random((128, 128)), 4)
    assert ms_ssim(image, moved) > 0.6 > ms_ssim(image, (other - other.min()) / np.ptp(other))


def test_balanced_accuracy_by_hand():
    reference = np.array(["yes", "yes", "no", "left"])
    assert balanced_accuracy(reference, np.array([True, False, True, False])) == 0.75
    assert np.isnan(balanced_accuracy(reference[:2], np.array([True, False])))
