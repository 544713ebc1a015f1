"""InstructionExample: the one type between the tasks and the token ids (paper, section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Text, or an image as codes uint16 [L], row by row from the top left.
Content = str | np.ndarray
# What a response is: text, an image of exactly L codes, or both in turn, any number of each.
Grammar = Literal["text", "image", "in turn"]
Cut = Literal["input", "response"]  # the first turn's input, or the last turn's response


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

    task: str  # its name
    turns: tuple[Turn, ...]
    image_id: str = ""
    plain: str = ""
    may_cut: Cut | None = None  # the text that may end earlier, after a sentence, where the example is too long
