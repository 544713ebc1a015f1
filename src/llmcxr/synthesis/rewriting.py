"""Sentences that refer to earlier studies, rewritten by a chat LLM so that they say what this image shows: the policy
`rewrite` of `prior_references`.

Sentences are asked about one by one, each wording once ("The heart is stable in size." stands in thousands of reports), so
nothing else of a report can change. A rewritten sentence is used where it passes `fault_of`; else the sentence is dropped,
as by the policy `drop`, and counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llmcxr.foundation.errors import UserError
from llmcxr.labelling.base import Labeller
from llmcxr.studies.prior_references import cues_of
from llmcxr.studies.report_cleaning import clean_text
from llmcxr.studies.sentences import sentences
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.estimate import Estimate
from llmcxr.synthesis.prompts import rewriting_prompt
from llmcxr.synthesis.store import AnswerStore

REWRITTEN, NOTHING_LEFT = "rewritten", "nothing left of it"

_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_NEGATION = re.compile(r"\b(?:no|not|without|none|never|neither|nor|free|absent|negative)\b", re.IGNORECASE)
# What a sentence may need to be one again; everything else must have been in it before.
_SMALL = frozenset(
    ("a", "an", "and", "are", "as", "at", "be", "by", "has", "have", "in", "is", "it", "may", "no", "not", "of", "on", "or",
     "seen", "shown", "that", "the", "there", "this", "to", "with")
)  # fmt: skip


def fault_of(sentence: str, rewritten: str, labeller: Labeller) -> str:
    """Why a rewritten sentence cannot take the place of `sentence`; "" where it can.

    It must refer to no earlier study, say the same of every finding that the labeller knows (state and side), deny as
    often, and have no word or number that was not there, but for the smallest.
    """
    if any(cues_of(part) for part in sentences(clean_text(rewritten))):
        return "still refers to an earlier study"
    before, after = labeller.read(sentence), labeller.read(rewritten)
    if after.states.keys() - before.states.keys():
        return "adds a finding"
    if before.states.keys() - after.states.keys():
        return "loses a finding"
    if before.states != after.states:
        return "changes whether a finding is there"
    if before.sides() != after.sides():
        return "changes the side of a finding"
    rest = sentence
    for cue in cues_of(sentence):
        rest = rest.replace(cue, " ", 1)
    if len(_NEGATION.findall(rest)) != len(_NEGATION.findall(rewritten)):
        return "denies what was not denied, or the other way round"
    if set(_WORD.findall(rewritten.lower())) - set(_WORD.findall(sentence.lower())) - _SMALL:
        return "adds words"
    return ""


def referring(texts: Sequence[str]) -> list[str]:
    """The sentences of texts that refer to earlier studies, each wording once: what is asked about."""
    return list(dict.fromkeys(s for text in texts for s in sentences(clean_text(text)) if cues_of(s)))


class Rewriter:
    """A `ReportEdit` (studies/prior_references.py): texts with references to as many texts without."""

    def __init__(self, client: ChatClient, labeller: Labeller, answers: Path) -> None:
        """`answers`: the file that keeps what the LLM says."""
        self.client, self.labeller, self.answers = client, labeller, answers
        self.counts = Counter[str]()  # sentences by what became of them

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The texts with their sentences rewritten or, where that fails, dropped.

        `UserError` where the budget does not suffice: answers are kept, and asked for no second time.
        """
        found = self._ask(referring(texts))
        result = []
        for text in texts:
            kept = []
            for sentence in sentences(clean_text(text)):
                if not cues_of(sentence):
                    kept.append(sentence)
                    continue
                rewritten, outcome = found[sentence]
                self.counts[outcome] += 1
                if rewritten:
                    kept.append(rewritten)
            result.append(" ".join(kept))
        return result

    def _ask(self, wanted: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Sentence -> (what takes its place, "" for nothing; what became of it)."""
        prompt, model = rewriting_prompt(), self.client.settings.model
        keys = {prompt.request(sentence).key(model): sentence for sentence in wanted}
        requests = [prompt.request(sentence) for sentence in wanted]
        with AnswerStore(self.answers) as store:
            for line in Estimate.of(requests, self.client.settings, store).ahead():
                print(f"    {line}", flush=True)
            progress = self.client.answer_all(requests, store, len(wanted), "references to earlier studies")
            if progress.stopped:
                raise UserError(
                    f"the budget is used up after {progress.before + progress.answered:,} of {len(wanted):,} sentences: "
                    f"{progress.stopped}. Set it higher and run again: nothing is asked twice."
                )
            result = dict.fromkeys(wanted, ("", "dropped: no answer"))
            for answer in store.answers(keys):
                sentence = keys[answer.request]
                result[sentence] = self._judged(sentence, None if answer.error else _text_of(answer.text))
        return result

    def _judged(self, sentence: str, rewritten: str | None) -> tuple[str, str]:
        if rewritten is None:
            return "", "dropped: no answer"
        if not rewritten:
            lost = bool(self.labeller.read(sentence).states)
            return "", "dropped: loses a finding" if lost else NOTHING_LEFT
        fault = fault_of(sentence, rewritten, self.labeller)
        return ("", f"dropped: {fault}") if fault else (rewritten, REWRITTEN)


def _text_of(answer: str) -> str | None:
    """The text in an answer, on one line; None where there is none: what is not JSON may be talk."""
    begin = answer.find("{")
    try:
        value, _ = json.JSONDecoder().raw_decode(answer, begin) if begin >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None
    text = value.get("text") if isinstance(value, dict) else None
    return clean_text(text) if isinstance(text, str) else None
