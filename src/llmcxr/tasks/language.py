"""Task: language instruction following (paper, section 2.4, "NL-IF"), the guard against forgetting; and plain texts (ours)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.texts import is_text
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.studies.study import Split, Study
from llmcxr.tasks.base import Items, Task, TaskData
from llmcxr.tasks.measurement import Ask, Cases, Examinee, Measurement, NotMeasured, Prediction, Score

SHIPPED = Path(__file__).parent / "data" / "language_instructions.jsonl"
_NAMES = {
    "instruction": "instruction",
    "input": "input",
    "context": "input",
    "response": "response",
    "output": "response",
}


def load_instructions(path: Path) -> list[Turn]:
    """Turns of a JSONL file with instruction, input (or Dolly's context) and response (or output) in each line.

    `UserError` names the line where one is broken or lacks a key.
    """
    turns = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 too
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the language instructions {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = {_NAMES[k]: v for k, v in json.loads(line).items() if k in _NAMES}
            if not all(isinstance(v, str) for v in (row["instruction"], row.get("input") or "", row["response"])):
                raise TypeError("instruction, input and response should be text")
            if not is_text("".join(filter(None, row.values()))):
                raise TypeError("half a character (a lone \\ud800 to \\udfff) is no text")
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: {error!r}; each line needs instruction and response.") from error
        turns.append(Turn(row["instruction"], row.get("input") or "", row["response"]))
    if not turns:
        raise UserError(f"{path} holds no instructions.")
    return turns


def instructions_of(path: Path | None, split: Split) -> list[Turn]:
    """Language instructions of `path` (None: the shipped ones); every tenth is kept from training."""
    turns = load_instructions(path or SHIPPED)
    return [turn for i, turn in enumerate(turns) if (i % 10 == 0) == (split != "train")]


class LanguageItems(Items):
    """One item an instruction, and one a plain text."""

    def __init__(self, turns: Sequence[Turn], texts: Sequence[str] = ()) -> None:
        self._items = [InstructionExample(TASK.name, (turn,)) for turn in turns]
        self._items += [InstructionExample(TASK.name, (), plain=text) for text in texts]

    def __len__(self) -> int:
        return len(self._items)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """The item as it is."""
        return self._items[item]


class Language(Task):
    """Instructions without an image in, answers out: what the LLM could do before."""

    name = "language"
    about = "follows instructions and chats as its base LLM does"
    place = 0

    def items(self, data: TaskData) -> LanguageItems:
        """One item an instruction, and one a text of the base model."""
        return LanguageItems(instructions_of(data.options["language"].instructions, data.split), data.texts)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> tuple[Turn, ...]:
        """Messages that alternate {"role": "user"} and {"role": "assistant"}, beginning and ending with user."""
        roles = [message["role"] for message in messages]
        if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
            raise ValueError(f"roles should alternate user, assistant and end with user; are {roles}")
        said = [message["content"] for message in messages]
        return tuple(Turn(said[i], "", said[i + 1] if i + 1 < len(said) else None) for i in range(0, len(said), 2))


TASK = Language()


# ----------------------------------------------------------------------------------------------------- how it is measured


class LanguageMeasurement(Measurement):
    """Perplexity on general text against the base model, in the same precision."""

    name, group, place = "language", "language", 5
    scores = (
        Score(
            "Language, perplexity ratio",
            "language.perplexity_ratio",
            None,
            "",
            1.0,
            "the base model itself",
            "Perplexity on general text, tuned model over base model: 1 means that no language was lost.",
            scale=None,
            lower_is_better=True,
        ),
    )

    def asks(self, cases: Cases) -> list[list[Ask]]:
        """All texts at once; no patient."""
        return [[Ask(Study("", "", "", "", "test"), "general text")]]

    def answer(self, model: Examinee, group: Sequence[Ask], seed: int) -> list[Prediction]:
        """One prediction with both perplexities."""
        return [self.prediction(group[0], perplexities=model.perplexities())]

    def score(self, predictions: Sequence[Prediction], cases: Cases) -> dict[str, Any] | NotMeasured:
        """Their ratio."""
        if not predictions:
            return NotMeasured("it was not asked for")
        both = predictions[0].extra["perplexities"]
        return {
            "perplexity_ratio": both["tuned"] / both["base"],
            "perplexity": both["tuned"],
            "perplexity_base": both["base"],
            "n": both["n"],
        }


MEASUREMENT = LanguageMeasurement()
