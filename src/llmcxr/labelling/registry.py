"""The labellers by name, and labels for studies that come with none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.workers import in_processes
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


def _read(labeller: Labeller, text: str) -> dict[str, int]:
    return dict(labeller.read(text).states)


def _states(labeller: Labeller, texts: Sequence[str]) -> Iterator[dict[str, int]]:
    """What texts say, in order, read on all cores."""
    return in_processes(functools.partial(_read, labeller), texts, "labels from reports", "report")


def label_studies(studies: Sequence[Study], labeller: Labeller, kept: Path | None = None) -> list[Study]:
    """The studies as they are where any has labels; else labelled from their whole reports.

    A label is what the report says: 1 affirmed, 0 denied, -1 uncertain. What it does not mention stays unknown, never
    negative. Nothing is labelled by a labeller that knows no finding. `kept` takes what is read as it goes (`all_reports.read_all`).
    """
    if not labeller.findings or any(study.labels for study in studies):
        return list(studies)
    texts = [report_text(study, "findings_and_impression") for study in studies]
    key = fingerprint(type(labeller).__name__, list(labeller.findings))
    states = read_all(texts, functools.partial(_states, labeller), key, kept)  # images of one study share their report
    return [dataclasses.replace(s, labels=dict(states[text])) for s, text in zip(studies, texts, strict=True)]
