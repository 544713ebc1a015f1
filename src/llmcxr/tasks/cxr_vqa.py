"""Task: questions about an image (paper, section 2.4, "CXR-VQA"). Several questions can share one reading of the image.

Which questions stand together matters: after "Which findings ...? Cardiomegaly." the answer to "Is there cardiomegaly?"
can be copied instead of seen. So questions about the whole image are asked alone, and details of a finding by themselves or
after all presence questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.instructions.questions import Kind, QuestionAnswer
from llmcxr.tasks.base import Items, Task, TaskData

# The conversations, and the kinds of their questions. Their shares are a setting of each tuning stage.
CONVERSATIONS: dict[str, tuple[Kind, ...]] = {
    "list": ("list",),
    "presence": ("presence", "side", "severity", "type"),
    "detail": ("side", "severity", "type"),  # of findings that are there: the question says so
    "normal": ("normal",),
    "count": ("count",),
}


class CxrVqaItems(Items):
    """One item an image with its questions."""

    def __init__(
        self,
        questions: Sequence[QuestionAnswer],
        codes: Mapping[str, np.ndarray],
        per_image: int,
        shares: Mapping[str, float],
    ) -> None:
        """`per_image` is the most questions asked on one reading of an image; the paper asks one. `shares` are the
        chances of each conversation of `CONVERSATIONS`; an image that has none with a chance is left out."""
        self._shares = {CONVERSATIONS[name]: share for name, share in shares.items() if share > 0}
        wanted = {kind for conversation in self._shares for kind in conversation}
        by_image: dict[str, list[QuestionAnswer]] = {}
        for question in questions:
            if question.image_id in codes and question.kind in wanted:
                by_image.setdefault(question.image_id, []).append(question)
        self._items = list(by_image.items())
        self._codes = codes
        self._per_image = per_image

    def __len__(self) -> int:
        return len(self._items)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """A fresh choice and order of the image's questions; the image stands in the first turn."""
        image_id, questions = self._items[item]
        kinds = {q.kind for q in questions}
        possible = {c: p for c, p in self._shares.items() if kinds.intersection(c)}
        shares = np.array(list(possible.values()))
        conversation = list(possible)[rng.choice(len(shares), p=shares / shares.sum())]
        own = [q for q in questions if q.kind in conversation]
        chosen = [own[i] for i in rng.permutation(len(own))[: self._per_image]]
        chosen.sort(key=lambda q: q.kind != "presence")  # stable: details keep their drawn order, after presence
        turns = tuple(Turn(q.question, self._codes[image_id] if i == 0 else "", q.answer) for i, q in enumerate(chosen))
        return InstructionExample(TASK.name, turns, image_id)


class CxrVqa(Task):
    """An image as codes and a question in, the answer out."""

    name = "cxr_vqa"
    about = "answers a question about a radiograph"
    place = 3

    def items(self, data: TaskData) -> CxrVqaItems:
        """One item an image with its questions."""
        codes = {study.image_id: data.codes[study.image_id] for study in data.studies}
        options = data.options
        return CxrVqaItems(data.questions, codes, options["questions_per_image"], options["conversations"])

    def prompt(self, codes: np.ndarray, question: str) -> tuple[Turn, ...]:
        """One question about one image."""
        return (Turn(question, codes),)


TASK = CxrVqa()
