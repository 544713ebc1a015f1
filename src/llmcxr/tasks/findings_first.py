"""Findings first: a turn that names the findings before a report is written, or an image drawn from one (ours).

Either every item of a task has its list or none has: a model that was trained both ways could not be asked rightly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmcxr.instructions.questions import finding_list
from llmcxr.labelling.base import Labeller
from llmcxr.studies.findings import Finding, LabelSet
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.tasks.base import TaskData

# (study, its report, findings of the data, labeller) -> list of findings; None where one of them is not known.
Naming = Callable[[Study, str, LabelSet, Labeller | None], str | None]


@dataclass(frozen=True)
class ImageReport:
    """An image's codes uint16 [L], its report, and the list of findings that is named first (None: none is)."""

    image_id: str
    codes: np.ndarray
    report: str
    named: str | None = None


def _unlabelled(study: Study, findings: LabelSet) -> LabelSet:
    return LabelSet(name for name in findings if study.labels.get(name) not in (0, 1))


def _stated(report: str, labeller: Labeller, findings: LabelSet) -> list[Finding]:
    """What the report states, as the data spells it."""
    return [
        dataclasses.replace(finding, name=findings.spelling(finding.name)) if finding.name in findings else finding
        for finding in labeller.read(report).stated()
    ]


def seen_list(study: Study, report: str, findings: LabelSet, labeller: Labeller | None) -> str | None:
    """What the image shows: exact findings, else each from its label, else from the report."""
    if study.truth or study.mask_path:
        return finding_list(study.truth)
    unknown = _unlabelled(study, findings)
    seen = [Finding(name) for name in findings if study.labels.get(name) == 1]
    if unknown:
        if labeller is None or labeller.findings.missing(unknown):
            return None
        seen += [finding for finding in _stated(report, labeller, findings) if finding.name in unknown]
    return finding_list(seen) if findings else None


def stated_list(study: Study, report: str, findings: LabelSet, labeller: Labeller | None) -> str | None:
    """What the report states: read by the labeller; findings that it does not know from their labels."""
    if not findings:
        return None
    unread = LabelSet(findings if labeller is None else labeller.findings.missing(findings))
    if any(name in unread for name in _unlabelled(study, findings)):
        return None
    stated = [] if labeller is None else _stated(report, labeller, findings)
    if unread:  # of a list that others made, nothing but its own findings
        stated = [f for f in stated if f.name in findings] + [Finding(n) for n in unread if study.labels[n] == 1]
    return finding_list(stated)


def image_reports(data: TaskData, task: str, naming: Naming) -> tuple[list[ImageReport], str]:
    """Images with a report, with their lists where `task` should name findings first; and a note where it cannot.

    In training a task without all lists has none. In another split, pairs without the list that training has are left out.
    """
    pairs = [
        ImageReport(study.image_id, data.codes[study.image_id], text)
        for study in data.studies
        if (text := report_text(study, data.part))
    ]
    if task not in data.findings_first or not pairs:
        return pairs, ""
    by_id = {study.image_id: study for study in data.studies}
    named = [
        dataclasses.replace(p, named=naming(by_id[p.image_id], p.report, data.findings, data.labeller)) for p in pairs
    ]
    without = [pair for pair in named if pair.named is None]
    if not without:
        return named, ""
    if data.split != "train":
        return [pair for pair in named if pair.named is not None], f"{task}: {len(without)} without a list are left out"
    return pairs, (
        f"{task} is trained without findings first: {len(without):,} of {len(pairs):,} reports (e.g. of {without[0].image_id}) have "
        "findings that neither their labels nor the labeller know"
    )
