"""InstructionExample: the one type between the tasks and the token ids (paper, section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Task = Literal["language", "report_to_cxr", "cxr_to_report", "cxr_vqa"]
TASKS: tuple[Task, ...] = ("language", "report_to_cxr", "cxr_to_report", "cxr_vqa")

# Text, or an image as codes uint16 [L], row by row from the top left.
Content = str | np.ndarray


@dataclass(frozen=True)
class Turn:
    """An instruction, what it is about, and the response (None: to be generated)."""

    instruction: str
    input: Content = ""
    response: Content | None = None


@dataclass(frozen=True)
class InstructionExample:
    """One conversation; later turns may refer to images of earlier ones. Every response is learned.

    Or, without turns, `plain` text under no template, of which every token after the first is learned.
    """

    task: Task
    turns: tuple[Turn, ...]
    image_id: str = ""
    plain: str = ""
