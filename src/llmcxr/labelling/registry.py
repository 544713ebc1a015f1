"""The labellers by name, and labels for studies that come with none."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from llmcxr.foundation.devices import core_count
from llmcxr.foundation.errors import UserError
from llmcxr.labelling import terms
from llmcxr.labelling.base import Labeller, Reading
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import LabelSet
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study

LabellerName = Literal["rules", "chexpert", "chexbert", "none"]
_CHUNK = 2_000  # texts that a process reads at once
_ALONE = 20_000  # texts up to which starting further processes takes longer than reading


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


def _by_rules(name: LabellerName, texts: Sequence[str]) -> list[dict[str, int]]:
    """In a process of its own, which builds its labeller once."""
    return [reading.states for reading in build_labeller(name).read_all(texts)]


def _states(labeller: Labeller, texts: Sequence[str]) -> Iterator[list[dict[str, int]]]:
    """What texts say, chunk by chunk in order; rules read many texts in parallel processes."""
    chunks = [texts[at : at + _CHUNK] for at in range(0, len(texts), _CHUNK)]
    rules: tuple[LabellerName, ...] = ("rules", "chexpert")
    name = next((n for n in rules if labeller is build_labeller(n)), None)
    if name is None or len(texts) <= _ALONE or core_count() == 1:
        for chunk in chunks:
            yield [reading.states for reading in labeller.read_all(chunk)]
        return
    with ProcessPoolExecutor(core_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(functools.partial(_by_rules, name), chunks)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that labels reports died: too little memory, or the calling script lacks `if __name__ == "
                "'__main__':`. Give it fewer cores (taskset) or mend the script."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def label_studies(studies: Sequence[Study], labeller: Labeller) -> list[Study]:
    """The studies as they are where any has labels; else labelled from their whole reports.

    A label is what the report says: 1 affirmed, 0 denied, -1 uncertain. What it does not mention stays unknown, never
    negative. Nothing is labelled by a labeller that knows no finding.
    """
    if not labeller.findings or any(study.labels for study in studies):
        return list(studies)
    reports = [report_text(study, "findings_and_impression") for study in studies]
    texts = list(dict.fromkeys(reports))  # images of one study share their report
    told: dict[str, dict[str, int]] = {}
    with tqdm(total=len(texts), desc="labels from reports", unit="report") as bar:
        for states in _states(labeller, texts):
            told |= zip(texts[len(told) :], states, strict=False)
            bar.update(len(states))
    return [dataclasses.replace(study, labels=dict(told[text])) for study, text in zip(studies, reports, strict=True)]
