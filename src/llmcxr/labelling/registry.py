"""The labellers by name, and labels for studies that come with none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llmcxr.labelling.all_reports import read_all
from llmcxr.labelling.base import Labeller, Reading
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study

LabellerName = Literal["rules", "none"]


class _Nothing:
    """Knows no finding: what needs a labeller is left out."""

    findings = sided = LabelSet()

    def read(self, text: str) -> Reading:
        return Reading({})


@functools.cache
def build_labeller(name: LabellerName) -> Labeller:
    """The labeller of that name, one instance a process."""
    return RuleLabeller() if name == "rules" else _Nothing()


def label_studies(studies: Sequence[Study], labeller: Labeller, kept: Path | None = None) -> list[Study]:
    """The studies as they are where any has labels; else labelled from their whole reports.

    A label is what the report says: 1 affirmed, 0 denied, -1 uncertain. What it does not mention stays unknown, never
    negative. Nothing is labelled by a labeller that knows no finding. `kept` takes what is read as it goes (`all_reports.read_all`).
    """
    if not labeller.findings or any(study.labels for study in studies):
        return list(studies)
    texts = [report_text(study, "findings_and_impression") for study in studies]
    states = read_all(texts, labeller, kept)  # images of one study share their report
    return [dataclasses.replace(s, labels=dict(states[text])) for s, text in zip(studies, texts, strict=True)]
