"""Task: image from report (paper, section 2.4, "Report-to-CXR")."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llmcxr.instructions.example import Grammar, InstructionExample, Turn
from llmcxr.instructions.questions import listed_findings
from llmcxr.tasks.base import Items, Task, TaskData
from llmcxr.tasks.findings_first import ImageReport, image_reports, stated_list

# Ten phrasings, drawn at random for each example (paper, section 2.4). The first is used for inference.
PHRASINGS = (
    "Draw a chest radiograph that fits this report.",
    "Generate a chest X-ray for the following report.",
    "Create the chest image that this report describes.",
    "Produce a frontal chest film with these findings.",
    "Make a chest radiograph that shows what is written here.",
    "Which chest X-ray belongs to this report? Draw it.",
    "Turn this radiology report into a chest radiograph.",
    "Synthesise a chest X-ray that matches the text.",
    "Render a chest radiograph from this description.",
    "Show a chest X-ray for which this would be the report.",
)
STATED_QUESTION = "Which abnormal findings does this report state?"


def repeats(pairs: Sequence[ImageReport], rare: float) -> list[int]:
    """How often each report should occur so that rare findings are learned, too, at least once.

    Repeat factor sampling (Gupta et al. 2019, LVIS): the largest sqrt(rare / share of the reports that state it) over the
    findings a report states. A factor of 2.3 is 2 for some and 3 for others, by their order.
    """
    stated = [{f.name for f in listed_findings(pair.named)} if pair.named else set() for pair in pairs]
    counts = Counter(name for names in stated for name in names)
    factors = np.array(
        [max([1.0, *(math.sqrt(rare * len(pairs) / counts[name]) for name in names)]) for names in stated]
    )
    return np.diff(np.floor(np.cumsum(factors) + 1e-9), prepend=0).astype(int).tolist()


class ReportToCxrItems(Items):
    """One item an image with a report, or several where the report states a rare finding."""

    def __init__(
        self, pairs: Sequence[ImageReport], unguided_share: float = 0.0, rare: float = 0.0, note: str = ""
    ) -> None:
        """`unguided_share` of the examples ask for any radiograph, without a report: what guidance starts from.

        Reports are repeated as their rarest stated finding asks for (`repeats`, with findings rarer than `rare`).
        """
        self.findings_first, self.note = any(pair.named is not None for pair in pairs), note
        self._pairs = [pair for pair, times in zip(pairs, repeats(pairs, rare), strict=True) for _ in range(times)]
        self._unguided_share = unguided_share

    def __len__(self) -> int:
        return len(self._pairs)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """The item under one of the phrasings."""
        pair = self._pairs[item]
        phrasing = PHRASINGS[rng.integers(len(PHRASINGS))]
        turns = TASK.prompt(pair.report, pair.named, phrasing, pair.codes)
        if self._unguided_share and rng.random() < self._unguided_share:
            turns = TASK.prompt("", None, phrasing, pair.codes)
        return InstructionExample(TASK.name, turns, pair.image_id, may_cut="input")


class ReportToCxr(Task):
    """A report in, an image as codes out."""

    name = "report_to_cxr"
    about = "draws a radiograph for a report"
    place = 1
    grammar: Grammar = "image"
    can_name_findings = True

    def items(self, data: TaskData) -> ReportToCxrItems:
        """One item an image with a report, or several."""
        pairs, note = image_reports(data, self.name, stated_list)
        return ReportToCxrItems(pairs, data.options["unguided_share"], data.options["rare_findings"], note)

    def list_prompt(self, report: str) -> tuple[Turn, ...]:
        """Asks for the findings that are named first: those that the report states."""
        return (Turn(STATED_QUESTION, report),)

    def prompt(
        self, report: str, named: str | None = None, instruction: str = PHRASINGS[0], codes: np.ndarray | None = None
    ) -> tuple[Turn, ...]:
        """Turns that end in an image (None: to be drawn) for a report, after the list `named`, or without one."""
        if named is None:
            return (Turn(instruction, report, codes),)
        return Turn(STATED_QUESTION, report, named), Turn(instruction, "", codes)


TASK = ReportToCxr()
