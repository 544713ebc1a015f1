"""The labellers by name, and labels for studies that come with none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from llmcxr.foundation.artifacts import fingerprint
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.workers import in_processes
from llmcxr.labelling import terms
from llmcxr.labelling.all_reports import read_all
from llmcxr.labelling.base import Labeller, Reading
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import LabelSet, is_finding
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study

LabellerName = Literal["rules", "chexpert", "chexbert", "none"]
_CHUNK = 2_000  # texts that are read at once where a network reads them
_DOING = "labels from reports"


class _Nothing:
    """Knows no finding: what needs a labeller is left out."""

    findings = sided = LabelSet()

    def read(self, text: str) -> Reading:
        return Reading({})

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        return [Reading({}) for _ in texts]


@functools.cache
def build_labeller(name: LabellerName, chexbert: Path | None = None, device: str = "cpu") -> Labeller:
    """The labeller of that name, one instance a process; `chexbert` is the folder of CheXbert's files.

    `UserError` where that is missing or holds something else.
    """
    if name == "chexbert":
        from llmcxr.labelling.chexbert import CheXbertLabeller  # loads torch

        if chexbert is None:
            raise UserError("labeller: chexbert needs `chexbert`, the folder that holds chexbert.pth and vocab.txt.")
        return CheXbertLabeller(chexbert, device)
    if name == "none":
        return _Nothing()
    return RuleLabeller(terms.CHEXPERT if name == "chexpert" else terms.FINDINGS)


def _by_rules(name: LabellerName, text: str) -> dict[str, int]:
    """In a process of its own, which builds its labeller once."""
    return build_labeller(name).read(text).states


def _states(labeller: Labeller, texts: Sequence[str]) -> Iterator[dict[str, int]]:
    """What texts say, in order, as it is read: by rules on all cores, by others chunk by chunk."""
    rules: tuple[LabellerName, ...] = ("rules", "chexpert")
    if name := next((n for n in rules if labeller is build_labeller(n)), None):
        yield from in_processes(functools.partial(_by_rules, name), texts, _DOING, "report")
        return
    with tqdm(total=len(texts), desc=_DOING, unit="report") as bar:
        for at in range(0, len(texts), _CHUNK):
            for reading in labeller.read_all(texts[at : at + _CHUNK]):
                yield reading.states
                bar.update()


def label_studies(studies: Sequence[Study], labeller: Labeller, kept: Path | None = None) -> list[Study]:
    """The studies as they are where any has labels; else labelled from their whole reports.

    A label is what the report says: 1 affirmed, 0 denied, -1 uncertain. What it does not mention stays unknown, never
    negative; "No Finding" is no finding. Nothing is labelled by a labeller that knows no finding. `kept` takes what is
    read as it goes (`all_reports.read_all`).
    """
    if not labeller.findings or any(study.labels for study in studies):
        return list(studies)
    texts = [report_text(study, "findings_and_impression") for study in studies]
    key = fingerprint(type(labeller).__name__, list(labeller.findings))
    states = read_all(texts, functools.partial(_states, labeller), key, kept)  # images of one study share their report
    labels = {text: {n: state for n, state in found.items() if is_finding(n)} for text, found in states.items()}
    return [dataclasses.replace(s, labels=dict(labels[text])) for s, text in zip(studies, texts, strict=True)]
