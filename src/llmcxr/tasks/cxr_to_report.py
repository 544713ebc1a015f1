"""Task: report from image (paper, section 2.4, "CXR-to-report")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.questions import LIST_QUESTION

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


@dataclass(frozen=True)
class ImageReport:
    """An image's codes uint16 [L] and its report, with the lists that are named first, None where none is: `seen` in the image,
    before a report is written, and `stated` by the report, before an image is drawn."""

    image_id: str
    codes: np.ndarray
    report: str
    seen: str | None = None
    stated: str | None = None


def report_turns(
    codes: np.ndarray, seen: str | None, instruction: str = PHRASINGS[0], report: str | None = None
) -> tuple[Turn, ...]:
    """Turns that end in a report (None: to be written) of the image `codes`, with the list of what is `seen` first or without."""
    if seen is None:
        return (Turn(instruction, codes, report),)
    return Turn(LIST_QUESTION, codes, seen), Turn(instruction, "", report)


class CxrToReportTask:
    """One item an image with a report."""

    def __init__(self, pairs: list[ImageReport]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """The item under one of the phrasings."""
        pair = self._pairs[item]
        turns = report_turns(pair.codes, pair.seen, PHRASINGS[rng.integers(len(PHRASINGS))], pair.report)
        return InstructionExample("cxr_to_report", turns, pair.image_id)
