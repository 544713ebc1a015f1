"""Task: questions about an image (paper, section 2.4, "CXR-VQA"). Several questions share one reading of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.vqa import QuestionAnswer


class CxrVqaTask:
    """One item an image with its questions."""

    def __init__(self, questions: Sequence[QuestionAnswer], codes: Mapping[str, np.ndarray], per_image: int) -> None:
        """`per_image` is the most questions asked on one reading of an image; the paper asks one."""
        by_image: dict[str, list[QuestionAnswer]] = {}
        for question in questions:
            if question.image_id in codes:
                by_image.setdefault(question.image_id, []).append(question)
        self._items = list(by_image.items())
        self._codes = codes
        self._per_image = per_image

    def __len__(self) -> int:
        return len(self._items)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """A fresh choice and order of the image's questions; the image stands in the first turn."""
        image_id, questions = self._items[item]
        chosen = [questions[i] for i in rng.permutation(len(questions))[: self._per_image]]
        turns = tuple(Turn(q.question, self._codes[image_id] if i == 0 else "", q.answer) for i, q in enumerate(chosen))
        return InstructionExample("cxr_vqa", turns, image_id)
