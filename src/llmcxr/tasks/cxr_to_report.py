"""Task: report from image (paper, section 2.4, "CXR-to-report")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.questions import LIST_QUESTION
from llmcxr.metrics import scores
from llmcxr.studies.findings import normal_form
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.tasks.base import Items, Task, TaskData
from llmcxr.tasks.findings_first import ImageReport, image_reports, seen_list
from llmcxr.tasks.measurement import (
    Ask,
    Cases,
    Examinee,
    Measurement,
    NotMeasured,
    Prediction,
    Score,
    in_groups,
    to_show,
)

# Ten phrasings, drawn at random for each example (paper, section 2.4). The first is used for inference.
PHRASINGS = (
    "Write the report of this chest radiograph.",
    "Describe what this chest X-ray shows.",
    "Read this chest radiograph and report it.",
    "What would a radiologist write about this chest X-ray?",
    "Give a radiology report for the chest image above.",
    "Report this frontal chest film.",
    "Summarise the findings of this chest radiograph as a report.",
    "Compose a short radiology report that fits this image.",
    "State the radiological impression of this chest X-ray.",
    "Interpret the chest radiograph and write down the report.",
)


class CxrToReportItems(Items):
    """One item an image with a report."""

    def __init__(self, pairs: Sequence[ImageReport], note: str = "") -> None:
        self._pairs, self.note = pairs, note
        self.findings_first = any(pair.named is not None for pair in pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """The item under one of the phrasings."""
        pair = self._pairs[item]
        turns = TASK.prompt(pair.codes, pair.named, PHRASINGS[rng.integers(len(PHRASINGS))], pair.report)
        return InstructionExample(TASK.name, turns, pair.image_id, may_cut="response")


class CxrToReport(Task):
    """An image as codes in, its report out."""

    name = "cxr_to_report"
    about = "writes the report of a radiograph"
    place = 2
    can_name_findings = True

    def items(self, data: TaskData) -> CxrToReportItems:
        """One item an image with a report."""
        return CxrToReportItems(*image_reports(data, self.name, seen_list))

    def list_prompt(self, codes: np.ndarray) -> tuple[Turn, ...]:
        """Asks for the findings that are named first."""
        return (Turn(LIST_QUESTION, codes),)

    def prompt(
        self, codes: np.ndarray, named: str | None = None, instruction: str = PHRASINGS[0], report: str | None = None
    ) -> tuple[Turn, ...]:
        """Turns that end in a report (None: to be written) of the image `codes`, after the list `named`, or without one."""
        if named is None:
            return (Turn(instruction, codes, report),)
        return Turn(LIST_QUESTION, codes, named), Turn(instruction, "", report)


TASK = CxrToReport()


# ----------------------------------------------------------------------------------------------------- how it is measured

MOST_TOKENS = 128  # of a report (the paper's run)
_NO_REPORT = "no test image has a report text"
_NO_SIDE = "no report states rightly a finding whose side in the image is known"


class ReportMeasurement(Measurement):
    """Findings stated in generated reports against what is in the image, with trivial baselines and the ceiling."""

    name, group, place = "cxr_to_report", "report", 1
    scores = (
        Score(
            "Report findings, micro-F1",
            "report.micro_f1",
            "report.baseline_micro_f1",
            "the best of: one fixed set of findings, the commonest report, shuffled reports",
            "report.reference_micro_f1",
            "the same labeller on the radiologist's own reports of these images, also where they disagree with the labels",
            "How well the findings stated in generated reports agree with those that are in the images.",
            interval=("report.micro_f1_low", "report.micro_f1_high"),
            count="report.n",
            needs="no finding is known to be there and none is stated",
        ),
        Score(
            "Report findings, macro-F1",
            "report.macro_f1",
            "report.baseline_macro_f1",
            "the best fixed set of findings, said of every image",
            "report.reference_macro_f1",
            "the same labeller on the radiologist's own reports of these images, also where they disagree with the labels",
            "The same with every finding counted alike, so that rare ones weigh as much as frequent ones.",
            count="report.n",
            needs="no finding is known to be there in any image",
        ),
        Score(
            "Report findings, side right",
            "report.side_accuracy",
            "report.side_baseline",
            "the commonest side of each finding in training",
            "report.side_reference",
            "the radiologist's own reports",
            "Where a report states a finding that is in the image, and on which side: the share of sides that are right.",
            interval=("report.side_low", "report.side_high"),
            count="report.side_n",
            needs=_NO_SIDE,
        ),
    )

    def asks(self, cases: Cases) -> list[list[Ask]]:
        """Test images with a report, which is the reference."""
        told = [(s, text) for s in cases.shuffled if (text := report_text(s, cases.part))][: cases.counts["reports"]]
        shown = to_show([study for study, _ in told], 12)
        return in_groups([Ask(s, cases.part, reference=text, shown=k in shown) for k, (s, text) in enumerate(told)])

    def answer(self, model: Examinee, group: Sequence[Ask], seed: int) -> list[Prediction]:
        """Reports; greedy unless the model's own way of writing has candidates."""
        texts = model.reports([ask.study.image_id for ask in group], MOST_TOKENS)
        return [self.prediction(ask, text, shown=ask.shown) for ask, text in zip(group, texts, strict=True)]

    def score(self, predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any] | NotMeasured:
        """F1 over the findings that the labeller reads, and sides."""
        if not predictions:
            return NotMeasured(_NO_REPORT)
        generated, references = [p.response for p in predictions], [p.reference for p in predictions]
        counts: dict[str, Any] = {"n": len(generated), "distinct_reports": len(set(generated))}
        counts["distinct"] = counts["distinct_reports"] / counts["n"]
        if why := cases.unreadable():
            return dict.fromkeys(("micro_f1", "macro_f1", "side_accuracy"), why) | counts
        studies, columns = cases.of(predictions), cases.readable
        truth = cases.labels(studies)[:, columns]
        predicted, stated = (cases.stated(texts)[:, columns] for texts in (generated, references))
        f1, reference_f1 = scores.micro_macro_f1(truth, predicted), scores.micro_macro_f1(truth, stated)
        low, high = cases.interval(
            lambda r: scores.micro_macro_f1(truth[r], predicted[r]).micro, [s.patient_id for s in studies]
        )
        rows_of_others = scores.shuffled(len(predicted), cases.seed)
        baselines = {"shuffled": scores.micro_macro_f1(truth, predicted[rows_of_others]).micro}
        train = [s for s in cases.train if report_text(s, cases.part)]
        if train:
            common = cases.stated([scores.most_common_report([report_text(s, cases.part) for s in train])])[:, columns]
            baselines["constant"] = scores.best_constant_prediction(
                cases.labels(train)[:, columns], truth
            ).test_micro_f1
            baselines["most_common_report"] = scores.micro_macro_f1(truth, common.repeat(len(truth), 0)).micro
        return counts | {
            "micro_f1": f1.micro,
            "micro_f1_low": low,
            "micro_f1_high": high,
            "macro_f1": f1.macro,
            # Every finding said of every image: of all fixed sets it has the best macro-F1.
            "baseline_macro_f1": scores.micro_macro_f1(truth, np.ones_like(truth)).macro,
            "baseline_micro_f1": max((v for v in baselines.values() if not math.isnan(v)), default=math.nan),
            "baselines": baselines,
            "reference_micro_f1": reference_f1.micro,
            "reference_macro_f1": reference_f1.macro,
            "findings_left_out": [name for i, name in enumerate(cases.findings) if i not in columns],
            **self._sides(cases, studies, (truth == 1) & predicted, generated, (truth == 1) & stated, references),
        }

    def _sides(
        self,
        cases: Cases,
        studies: Sequence[Study],
        right: np.ndarray,
        generated: Sequence[str],
        reference_right: np.ndarray,
        references: Sequence[str],
    ) -> dict[str, float]:
        """Where a finding is stated rightly: whether its side is, against the commonest side in training and real reports."""
        pairs = _side_pairs(cases, studies, right, generated)
        stated = [pair for pair in pairs if pair[3]]
        real = [p for p in _side_pairs(cases, studies, reference_right, references) if p[3]]
        known = [(name, side) for s in cases.train for name in cases.findings if (side := side_of(s, name))]
        common = scores.commonest([name for name, _ in known], [side for _, side in known])
        agrees = np.array([side == told for _, _, side, told in stated], dtype=float)
        low, high = cases.interval(lambda r: float(agrees[r].mean()), [patient for patient, *_ in stated])
        return {
            "side_accuracy": scores.mean(agrees),
            "side_low": low,
            "side_high": high,
            "side_baseline": scores.mean([float(side == common.get(name, "")) for _, name, side, _ in stated]),
            "side_reference": scores.mean([float(side == told) for _, _, side, told in real]),
            "side_stated": len(stated) / len(pairs) if pairs else math.nan,
            "side_n": len(stated),
        }

    def notes(self, values: Mapping[str, Any]) -> list[str]:
        """Reports that are all the same, and findings that could not be scored."""
        notes = []
        if values.get("n", 0) > 1 and values["distinct_reports"] == 1:
            notes.append(
                f"All {values['n']} generated reports are the same: the model does not read the image for them."
            )
        if left_out := values.get("findings_left_out"):
            notes.append(f"Report scores leave out what the labeller cannot read: {', '.join(left_out)}.")
        return notes


def side_of(study: Study, name: str) -> str:
    """The side of a finding in the image: "left", "right", "both" or "" (none, or not known)."""
    own = {side for f in study.truth if normal_form(f.name) == normal_form(name) and (side := f.side)}
    return "both" if len(own) > 1 else next(iter(own), "")


def _side_pairs(
    cases: Cases, studies: Sequence[Study], right: np.ndarray, texts: Sequence[str]
) -> list[tuple[str, str, str, str]]:
    """(patient, finding, side in the image, side in the text or "") of the findings that texts state rightly (bool [N, R])."""
    assert cases.labeller is not None
    names, pairs = [cases.findings[i] for i in cases.readable], []
    for k, study in enumerate(studies):
        told = {normal_form(f.name): f.side for f in cases.labeller.read(texts[k]).stated()}
        for f in np.flatnonzero(right[k]).tolist():
            if side := side_of(study, names[f]):
                pairs.append((study.patient_id, names[f], side, told.get(normal_form(names[f]), "")))
    return pairs


MEASUREMENT = ReportMeasurement()
