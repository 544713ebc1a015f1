"""What the results page shows of predictions: cards of the cases that were chosen before the model answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmcxr.pages.results import DrawingCard, QuestionRow, Reconstruction, ReportCard
from llmcxr.studies.study import Study
from llmcxr.tasks import cxr_to_report, cxr_vqa, report_to_cxr
from llmcxr.tasks.measurement import Cases, Prediction, read_picture


def shown_findings(study: Study, findings: Sequence[str]) -> str:
    """The findings that a study is known to have, for people; "" where nothing is known to be there, but not all is
    denied."""
    present = [name for name, state in study.labels.items() if state == 1]
    if not present and findings and all(study.labels.get(name) == 0 for name in findings):
        return "no finding"
    return ", ".join(present)


def cards(predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any]:
    """The parts of `PageContent` that show single cases."""

    def those(task: str) -> list[Prediction]:
        return [p for p in predictions if p.task == task and p.extra.get("shown")]

    def image(prediction: Prediction) -> Any:
        return cases.images([prediction.image_id])[0]

    def caption(prediction: Prediction) -> str:
        return shown_findings(cases.by_id[prediction.image_id], cases.findings)

    reports = []
    for p in those(cxr_to_report.MEASUREMENT.name):
        names: dict[str, list[str]] = {"right": [], "missed": [], "invented": []}
        unread: str = cases.unreadable() or ""
        if cases.readable:
            truth, stated = cases.labels([cases.by_id[p.image_id]])[0], cases.stated([p.response])[0]
            for i in cases.readable:
                kind = {(1, True): "right", (1, False): "missed", (0, True): "invented"}.get(
                    (truth[i], bool(stated[i]))
                )
                if kind:
                    names[kind].append(cases.findings[i])
            if np.isnan(truth[cases.readable]).all():
                unread = "no label of this image is known"
        found = names["right"], names["missed"], names["invented"]
        reports.append(ReportCard(image(p), p.reference, p.response, *found, caption(p), unread))
    answers = those(cxr_vqa.MEASUREMENT.name)
    right = cxr_vqa.vqa_right(answers)
    return {
        "reports": reports,
        "questions": [
            QuestionRow(p.question, p.reference, p.response, bool(ok), image(p))
            for p, ok in zip(answers, right, strict=True)
        ],
        "drawings": [
            DrawingCard(
                p.question,
                image(p),
                [read_picture(text) for text in p.extra["drawn"]],
                caption(p),
                read_picture(p.extra["kept"]),
            )
            for p in those(report_to_cxr.MEASUREMENT.name)
        ],
        "reconstructions": [
            Reconstruction(image(p), read_picture(p.extra["reconstruction"]), caption(p), p.extra["l1"])
            for p in predictions
            if "reconstruction" in p.extra
        ],
    }
