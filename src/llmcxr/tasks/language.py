"""Task: language instruction following (paper, section 2.4, "NL-IF"), the guard against forgetting; and plain texts (ours)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmcxr.foundation.errors import UserError
from llmcxr.instructions.example import InstructionExample, Turn
from llmcxr.studies.study import Study
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
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: {error!r}; each line needs instruction and response.") from error
        turns.append(Turn(row["instruction"], row.get("input") or "", row["response"]))
    if not turns:
        raise UserError(f"{path} holds no instructions.")
    return turns


class LanguageTask:
    """One item an instruction, and one a plain text."""

    def __init__(self, turns: Sequence[Turn], texts: Sequence[str] = ()) -> None:
        self._items = [InstructionExample("language", (turn,)) for turn in turns]
        self._items += [InstructionExample("language", (), plain=text) for text in texts]

    def __len__(self) -> int:
        return len(self._items)

    def example(self, item: int, rng: np.random.Generator) -> InstructionExample:
        """The item as it is."""
        return self._items[item]


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
