"""Which findings a report states: the map from text back to labels by which generated reports are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmcxr.labelling.registry import build_labeller
from llmcxr.metrics.scores import normalize_answer
from llmcxr.studies.report_sections import ReportPart, report_text
from llmcxr.studies.study import Study, label_matrix

Extractor = Callable[[str], np.ndarray]  # text -> bool [F]


def build_extractor(findings: Sequence[str], train: Sequence[Study], part: ReportPart) -> Extractor:
    """The rule-based labeller where it knows all the findings.

    For other label sets (reports that were written from labels) a text has the findings of the training report it
    equals, and none where it equals no training report.
    """
    labeller = build_labeller("rules")
    if not labeller.findings.missing(findings):
        own = [labeller.findings.spelling(name) for name in findings]

        def by_rules(text: str) -> np.ndarray:
            states = labeller.read(text).states
            return np.array([states.get(name) == 1 for name in own])

        return by_rules
    known = {normalize_answer(report_text(s, part)): label_matrix([s], findings)[0] == 1 for s in train}
    nothing = np.zeros(len(findings), dtype=bool)
    return lambda text: known.get(normalize_answer(text), nothing)
