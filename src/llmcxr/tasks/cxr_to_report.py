"""Task: report from image (paper, section 2.4, "CXR-to-report")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.questions import LIST_QUESTION
from llmcxr.tasks.base import Items, Task, TaskData
from llmcxr.tasks.findings_first import ImageReport, image_reports, seen_list

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
