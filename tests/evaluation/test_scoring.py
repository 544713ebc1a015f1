"""Scores from predictions: what is counted, what is left out and why, and what is said of it."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from toy_model import ToyModel, make_cases

from llmcxr.evaluation.scoring import MEASUREMENTS, SCORES, next_steps, score_table, shortfalls, summarise
from llmcxr.metrics.scores import micro_macro_f1
from llmcxr.pages.content import cards, shown_findings
from llmcxr.pages.results import PageContent, write_page
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.study import Study
from llmcxr.tasks.cxr_vqa import MEASUREMENT as VQA
from llmcxr.tasks.cxr_vqa import majority_answers, vqa_right
from llmcxr.tasks.measurement import Prediction, picture_text, read_picture, to_show


def answered(cases):
    """All predictions of the toy model."""
    model = ToyModel(cases)
    return [p for m in MEASUREMENTS for k, group in enumerate(m.asks(cases)) for p in m.answer(model, group, 32 * k)]


def study(**labels: int) -> Study:
    return Study("i", "p", "s", "i.png", "test", labels=labels)


def vqa(kind: str, reference: str, response: str, question: str = "?") -> Prediction:
    return Prediction("cxr_vqa", "i", "p", kind, question, reference, response)


# --- a whole evaluation


def test_a_model_that_reads_what_is_there():
    cases = make_cases([1] * 12 + [0] * 12, calibrated=lambda p_yes: {k: 0.9 * p + 0.05 for k, p in p_yes.items()})
    summary = summarise(answered(cases), cases)
    json.dumps(summary, allow_nan=False)
    assert summary["not_measured"] == {}
    assert summary["report"]["micro_f1"] == summary["report"]["reference_micro_f1"] == 1
    assert summary["report"]["side_accuracy"] == 1 and summary["report"]["side_n"] == 12
    assert summary["vqa"]["auroc"] == summary["vqa"]["auroc_high"] == summary["image"]["auroc"] == 1
    # Its p(yes) is the truth; its calibration moves both ends by 0.05.
    assert summary["vqa"]["calibration_error_raw"] == summary["vqa"]["brier_raw"] == 0
    assert summary["vqa"]["calibration_error"] == 0.05 and summary["vqa"]["brier"] == 0.0025
    assert summary["vqa"]["brier_constant"] == 0.25  # half of the training images have a nodule
    bins = {name: {tuple(b[:2]) for b in found} for name, found in summary["vqa"]["reliability"].items()}
    assert bins == {"raw": {(0, 0), (1, 1)}, "calibrated": {(0.05, 0), (0.95, 1)}}
    assert summary["vqa"]["auroc_n"] == summary["image"]["n"] == summary["image_tokenizer"]["n"] == 24
    assert summary["image"]["valid"] == 1 and summary["image"]["ms_ssim_n"] == 24
    assert summary["image_tokenizer"]["l1"] == 0 and summary["image_tokenizer"]["codebook_use"] == 0.5
    assert summary["image_tokenizer"]["perplexity"] == 1.5
    assert summary["language"] == {"perplexity_ratio": 1.1, "perplexity": 22, "perplexity_base": 20, "n": 3}
    routes = {"original": 1.0, "reconstruction": 1.0, "drawn": 1.0, "reading": 1.0}
    assert summary["findings"] == [{"name": "nodule", "positives": 12} | routes]
    assert {score.key.partition(".")[0] for score in SCORES} <= set(summary)
    assert summary["protocol"] == {
        "test_images": 24,
        "test_patients": 24,
        "left_out": {},
        "unknown_labels": "left_out",
        "uncertain_labels": "left_out",
    }


def test_a_model_without_calibration_is_said_to_have_none():
    cases = make_cases([1] * 6 + [0] * 6)
    summary = summarise(answered(cases), cases)
    assert summary["not_measured"]["vqa.calibration_error"].startswith("the model has no calibration")
    assert summary["vqa"]["brier"] == summary["vqa"]["calibration_error_raw"] == 0
    assert list(summary["vqa"]["reliability"]) == ["raw"]


def test_drawings_are_held_to_their_patient_and_to_what_was_asked():
    """12 of 24 patients have a nodule, 8 reports state it, and drawings show exactly what reports state."""
    texts = ["There is a nodule."] * 8 + ["The lungs are clear."] * 16
    cases = make_cases([1] * 12 + [0] * 12, texts)
    image = summarise(answered(cases), cases)["image"]
    assert image["auroc_asked"] == image["auroc_real"] == 1
    # Of the patients 8 of 12 are seen, and no other: (8 x 12 + 4 x 12 / 2) / (12 x 12).
    assert image["auroc"] == pytest.approx(5 / 6)
    # The real images show all 12, of which 8 were asked for: (8 x 12 + 8 x 4 / 2) / (8 x 16).
    assert image["auroc_asked_real"] == pytest.approx(7 / 8)
    assert image["ms_ssim_between_draws"] == pytest.approx(1)  # a model without any variety
    assert image["ms_ssim_own_shifted"] < image["ms_ssim_between_draws_low"]
    assert image["auroc_low"] <= image["auroc"] <= image["auroc_high"]


def test_scores_and_page_need_predictions_alone(tmp_path):
    cases = make_cases([1] * 6 + [0] * 6)
    predictions = [Prediction(**json.loads(json.dumps(vars(p)))) for p in answered(cases)]  # as from a file
    assert summarise(predictions, cases) == summarise(answered(cases), cases)
    shown = cards(predictions, cases)
    assert [len(shown[name]) for name in ("reports", "drawings", "reconstructions")] == [12, 8, 12]
    assert shown["reports"][0].right == ["nodule"] and len(shown["drawings"][0].drawn) == 4
    write_page(tmp_path / "p.html", PageContent("t", summary=summarise(predictions, cases), **shown))
    assert "the same labeller on the radiologist" in (tmp_path / "p.html").read_text()


def test_pictures_survive():
    image = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    assert (read_picture(picture_text(image)) == image).all()


# --- what is not known, or cannot be read


def test_labels_that_are_not_given_take_no_part():
    """Six images without a label have a report of the nodule: neither right nor wrong, unless blank is negative."""
    cases = make_cases([1] * 6 + [0] * 6 + [None] * 6, ["There is a nodule."] * 18)
    predictions = [p for p in answered(cases) if p.task == "cxr_to_report"]
    predictions = [Prediction(**vars(p) | {"response": "There is a nodule."}) for p in predictions]
    report = summarise(predictions, cases)["report"]
    assert report["micro_f1"] == report["reference_micro_f1"] == pytest.approx(12 / 18)  # TP 6, FP 6
    negative = make_cases([1] * 6 + [0] * 6 + [None] * 6, ["There is a nodule."] * 18, unknown_labels="negative")
    assert summarise(predictions, negative)["report"]["micro_f1"] == pytest.approx(12 / 24)  # FP 12
    uncertain = make_cases([1, 0, -1], unknown_labels="negative")
    assert np.isnan(uncertain.labels(uncertain.test)[2]).all()


@pytest.mark.parametrize(
    ("protocol", "label", "stated", "f1"),
    [("left_out", np.nan, False, 2 / 3), ("positive", 1, True, 1.0), ("negative", 0, False, 2 / 3)],
)
def test_uncertain_labels_count_by_the_named_protocol(protocol, label, stated, f1):
    """Of three nodules one is doubted by its label, another by the report that the model writes."""
    cases = make_cases([1, 1, 0, -1], uncertain_labels=protocol)
    np.testing.assert_array_equal(cases.labels(cases.test)[:, 0], [1, 1, 0, label])
    assert cases.stated(["Possible nodule.", "A nodule.", "No nodule."])[:, 0].tolist() == [stated, True, False]
    written = cases.stated(["Possible nodule.", "A nodule.", "No nodule.", "Possible nodule."])
    assert micro_macro_f1(cases.labels(cases.test), written).micro == pytest.approx(f1)


def test_findings_that_the_labeller_does_not_know_are_left_out():
    """Reports that equal training reports word for word were scored as if they were read."""
    cases = make_cases([1] * 6 + [0] * 6, ["COVID-19 pneumonia with ARDS."] * 6 + ["Clear."] * 6, "COVID-19, ARDS")
    summary = summarise(answered(cases), cases)
    why = "the labeller knows none of the findings of the data (COVID-19, ARDS)"
    for key in ("report.micro_f1", "report.macro_f1", "report.side_accuracy", "image.auroc_asked"):
        assert summary["not_measured"][key] == why
    assert summary["report"]["micro_f1"] is None and summary["vqa"]["auroc"] == summary["image"]["auroc_real"] == 1
    shown = cards(answered(cases), cases)["reports"]
    assert len(shown) == 12 and all((c.right, c.missed, c.invented, c.unread) == ([], [], [], why) for c in shown)
    table = score_table(summary)
    assert (
        f"Report findings, micro-F1; Report findings, macro-F1; Report findings, side right; Drawn images, AUROC for what was asked: {why}"
        in table
    )


def test_some_findings_that_the_labeller_does_not_know():
    cases = make_cases([1] * 6 + [0] * 6, findings=("ARDS", "nodule"))
    summary = summarise(answered(cases), cases)
    assert summary["report"]["micro_f1"] == 1 and summary["report"]["findings_left_out"] == ["ARDS"]
    assert "Report scores leave out what the labeller cannot read: ARDS." in summary["notes"]


def test_names_compare_by_their_normal_form():
    texts = ["There is a left pleural effusion."] * 6 + ["No effusion."] * 6
    spelt = make_cases([1] * 6 + [0] * 6, texts, "Pleural_Effusion")
    predictions = [p for p in answered(spelt) if p.task == "cxr_to_report"]
    predictions = [Prediction(**vars(p) | {"response": p.reference}) for p in predictions]
    plain = make_cases([1] * 6 + [0] * 6, texts, "pleural effusion")
    one, other = summarise(predictions, spelt)["report"], summarise(predictions, plain)["report"]
    assert one == other and one["micro_f1"] == 1 and one["side_n"] == 6
    assert spelt.matrix([{"pleural effusion": 2.0}]).tolist() == [[2.0]]


def test_without_any_label():
    cases = make_cases([None] * 4, ["Clear."] * 4, train=0)
    summary = summarise(answered(cases), cases)
    missing = summary["not_measured"]
    assert missing["report.micro_f1"] == "no label of the data is known both present and absent"
    assert missing["vqa.accuracy"].startswith("no question is known about any test image")
    assert {"vqa.auroc", "image.auroc", "image_tokenizer.auroc_reconstruction"} <= set(missing)
    assert not {"image_tokenizer.l1", "language.perplexity_ratio", "image.ms_ssim_between_draws"} & set(missing)
    for score in SCORES:
        assert (missing.get(score.key) is None) == (
            summary[score.key.split(".")[0]].get(score.key.split(".")[1]) is not None
        )


def test_without_reports_or_labeller():
    cases = make_cases([1] * 6 + [0] * 6, [""] * 12)
    summary = summarise(answered(cases), cases)
    assert (
        summary["not_measured"]["report.micro_f1"]
        == summary["not_measured"]["image.auroc"]
        == "no test image has a report text"
    )
    assert summary["vqa"]["auroc"] == 1
    assert next_steps(summary, ("nodule",), "i.png", "m", "llmcxr")[0].startswith("llmcxr ask i.png")
    cases = make_cases([1, 0], labeller=None)
    assert "labeller: none" in summarise(answered(cases), cases)["not_measured"]["report.micro_f1"]


# --- questions


def test_only_yes_no_questions_are_judged_by_their_first_word():
    answers = [
        vqa("presence", "No.", "No effusion is seen."),
        vqa("normal", "Yes.", "Yes, it is."),
        vqa("list", "No abnormal finding.", "No pneumothorax on the left."),
        vqa("list", "No abnormal finding.", "No abnormal finding."),
        vqa("count", "No.", "No"),
    ]
    assert vqa_right(answers).tolist() == [True, True, False, True, True]


def test_vqa_by_hand():
    def question(kind, text, answer):
        return make_cases([1]).questions[0].__class__("train0", text, answer, kind)

    training = [
        question("presence", "Effusion?", "Yes."),
        question("presence", "Effusion?", "Yes, a small one."),
        question("presence", "Effusion?", "No."),
        *[question("presence", "Nodule?", "No.")] * 3,
        question("side", "Which side?", "The left"),
    ]
    answers = [
        vqa("presence", "Yes", "yes, there is", "Effusion?"),  # majority: yes, right
        vqa("presence", "No", "Yes", "Effusion?"),  # majority: yes, wrong
        vqa("presence", "No", "No.", "Nodule?"),  # majority: no, right
        vqa("presence", "No", "no", "Mass?"),  # unseen text: the kind's "no", right
        vqa("side", "left.", "The left", "Which side?"),  # majority: left, right
        vqa("side", "right", "left", "Which lung?"),  # majority: left, wrong
    ]
    assert majority_answers(answers, training) == ["yes", "yes", "no", "no", "left", "left"]
    cases = make_cases([1, 0], questions=training)
    scored = VQA.score(answers, cases)
    assert isinstance(scored, dict)
    assert scored["n"] == 6 and scored["accuracy"] == scored["majority_accuracy"] == pytest.approx(4 / 6)
    assert scored["by_kind"] == {"presence": 0.75, "side": 0.5} and scored["count_by_kind"] == {
        "presence": 4,
        "side": 2,
    }
    assert scored["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2) and scored["balanced_n"] == 4
    assert scored["by_type"] == {"presence": 0.75, "location": 0.5}
    assert scored["count_by_type"] == {"presence": 4, "location": 2}
    assert scored["token_f1"] == scored["majority_token_f1"] == 0.5 and scored["token_f1_n"] == 2


# --- what is said of scores


def test_what_falls_short_is_said():
    report = {"micro_f1": 0.3, "micro_f1_low": 0.2, "micro_f1_high": 0.4, "baseline_micro_f1": 0.25, "n": 9}
    report |= {"reference_micro_f1": 0.9, "distinct_reports": 3}

    def notes(**changes):
        return shortfalls({"report": report | changes})

    assert notes(micro_f1_low=0.26) == []
    assert len(notes()) == 1 and "no better than the best of" in notes()[0] and "(95 % interval)" in notes()[0]
    assert "0.100 is worse than the best of" in notes(micro_f1=0.1, micro_f1_low=0.0)[0]
    assert "0.950 is better than the ceiling" in notes(micro_f1=0.95, micro_f1_low=0.9)[0]
    equal, reached = notes(baseline_micro_f1=0.95)  # between the two, but the two are the wrong way round
    assert "0.300 is worse than the best of" in equal and "(0.950), reaches the ceiling" in reached
    drawn = {"auroc": 0.6, "auroc_low": 0.55, "auroc_high": 0.7, "auroc_shuffled": 0.795, "auroc_real": 0.5}
    worse, reached = shortfalls({"image": drawn})
    assert "0.600 is worse than" in worse and "(0.795), reaches the ceiling" in reached and "(0.500)" in reached
    assert (
        "0.966 is better than the ceiling" in shortfalls({"language": {"perplexity_ratio": 0.966}})[0]
    )  # lower is better
    few = {"protocol": {"test_images": 6, "test_patients": 4}}
    assert shortfalls(few)[0].startswith("The test has 6 images of 4 patients: no number here says much.")
    assert shortfalls({"protocol": {"test_images": 90, "test_patients": 30}}) == []
    assert notes(distinct_reports=1, micro_f1_low=0.26) == [
        "All 9 generated reports are the same: the model does not read the image for them."
    ]
    assert shortfalls({"image": {"auroc": None, "auroc_shuffled": 0.5}}) == []  # what was not measured is none
    alike = {"ms_ssim_between_draws": 0.9, "ms_ssim_between_draws_high": 0.95, "ms_ssim_own_shifted": 0.8}
    assert "worse than a patient's own image" in shortfalls({"image": alike})[0]
    assert shortfalls({"image": alike | {"ms_ssim_own_shifted": 0.97}}) == []
    assert shortfalls({"image": {"ssim_between_drawn": 0.7, "ssim_between_real": 0.5}}) == [
        "Drawn images vary less than real ones."
    ]


def test_next_steps_fit_the_data():
    summary = {
        "report": {"n": 3},
        "findings": [{"name": "COVID-19, ARDS", "reading": 0.6}, {"name": "TB", "reading": 0.9}],
    }
    steps = next_steps(summary, ("COVID-19, ARDS", "TB"), "a.png", "runs/x", "llmcxr")
    assert steps[0] == "llmcxr report a.png --model runs/x"
    assert "draw 'There is TB.'" in steps[1] and "'Is there TB?'" in steps[2]
    assert not any("cardiomegaly" in step for step in steps)
    assert next_steps({}, (), "a.png", "runs/x", "llmcxr") == []
    unread = {"findings": [{"name": "rare", "positives": 1}, {"name": "frequent", "positives": 9, "reading": None}]}
    assert "frequent" in next_steps(unread, ("rare", "frequent"), "a.png", "runs/x", "llmcxr")[0]


def test_next_steps_can_be_pasted_into_a_shell():
    image, model, command = "my images/it's $1.png", "runs/a run; date", "./my venv/bin/llmcxr"
    summary = {"report": {"n": 3}}
    for line in next_steps(summary, ("Crohn's disease",), image, model, command):
        words = shlex.split(line)
        assert words[0] == command and words[words.index("--model") + 1] == model
        assert image in words or words[1] == "draw"


# --- what is shown


def test_unknown_and_uncertain_findings_are_not_denied():
    findings = LabelSet(("mass", "nodule"))
    assert shown_findings(study(mass=1, nodule=0), findings) == "mass"
    assert shown_findings(study(mass=0, nodule=0), findings) == "no finding"
    assert shown_findings(study(mass=0), findings) == shown_findings(study(mass=0, nodule=-1), findings) == ""
    assert shown_findings(study(), LabelSet()) == ""


def test_three_quarters_of_the_cases_shown_have_findings():
    some, none = study(mass=1), study(mass=0)
    assert to_show([none, some, none, some, some, some, none], 4) == [1, 3, 4, 0]
    assert to_show([none, none, some], 8) == [2, 0, 1]
    assert to_show([none] * 9, 8) == [2, 3, 4, 5, 6, 7, 0, 1]
    assert to_show([], 8) == []
