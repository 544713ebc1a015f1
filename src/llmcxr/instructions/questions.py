"""Question-answer pairs about an image whose findings are known exactly (the phantom's truth).

The paper (section 2.3) has a chat LLM write them from reports; where the findings themselves are known, the answers can
be exact and checked. A row of vqa.parquet: image_id, question, answer, kind, finding, origin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from llmcxr.foundation.randomness import stream
from llmcxr.foundation.text_rows import TextRows, write_rows
from llmcxr.studies.findings import Finding, LabelSet, is_finding, normal_form
from llmcxr.studies.study import Study

# What is asked for. Of exact findings there are no questions on place, device, and open ones: they come from reports.
Kind = Literal["presence", "normal", "side", "location", "severity", "type", "device", "count", "list", "open"]
YES_NO: frozenset[str] = frozenset({"presence", "normal"})  # kinds whose answer is yes or no
# Where a question comes from: findings that are known exactly; labels and reports, by rules; a chat LLM.
Origin = Literal["truth", "rules", "llm"]

NOTHING = "No abnormal finding."
_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
PRESENCE_ANSWERS = ("Yes.", "No.")
SIDE_ANSWERS = {"left": "Left.", "right": "Right.", "both": "Both sides."}


@dataclass(frozen=True)
class QuestionAnswer:
    """One question about one image. `finding` is the finding that a presence, side or severity question asks about."""

    image_id: str
    question: str
    answer: str
    kind: Kind
    finding: str = ""
    origin: Origin = "truth"


LIST_QUESTION = "Which abnormal findings does this chest radiograph show?"
NORMAL_QUESTION = "Is this chest radiograph normal?"

_ACRONYM = re.compile(r"[A-Z]{2,5}s?|\S*\d\S*")
# Endings of names that take no article: plurals, what is not counted (pneumonia, cardiomegaly, oedema, hyperinflation), and
# germs (Klebsiella, Influenza, E.Coli), of which the COVID-19 image data collection makes classes.
_NO_ARTICLE = re.compile(
    r"(?:(?<!s)s|(?<!hern)ia|megaly|pathy|ema|tion|ing|disease|covid|ella|enza|plasma|phila|coli)$", re.I
)
_VOWEL_SOUND = re.compile(r"[AEFHILMNORSX][A-Z]{0,4}\b|(?i:[aeio]|u(?!ni))")


def spoken(finding: str) -> str:
    """A finding's name as it is said in a sentence: as the user spells it, but for underscores."""
    return " ".join(finding.replace("_", " ").split())


def _with_article(finding: str) -> str:
    words = spoken(finding).split(" ")
    if _ACRONYM.fullmatch(words[-1]) or _NO_ARTICLE.search(words[-1]):
        return " ".join(words)
    return f"{'an' if _VOWEL_SOUND.match(words[0]) else 'a'} {' '.join(words)}"


def presence_question(finding: str) -> str:
    """The question whose answer's p(yes) scores a finding."""
    return f"Is there {_with_article(finding)}?"


def side_question(name: str) -> str:
    """The question on which side a finding is; `SIDE_ANSWERS` are its answers."""
    return f"On which side is the {spoken(name)}?"


def severity_question(name: str) -> str:
    """The question how severe, or how large, a finding is."""
    return f"How severe is the {spoken(name)}: mild, moderate or severe?"


def finding_list(findings: Iterable[Finding]) -> str:
    """A short dense answer that names all findings in the order of their names: "Cardiomegaly; right pleural effusion."."""
    sides: dict[str, set[str]] = {}
    for finding in findings:
        sides.setdefault(finding.name, set()).update({"left", "right"} if finding.side == "both" else {finding.side})
    # One order: what is there decides every token, and none is spent on guessing what a report would mention first.
    parts = []
    for name in sorted(sides, key=normal_form):
        own = sides[name] - {""}
        parts.append(f"{'bilateral' if len(own) == 2 else ''.join(own)} {spoken(name)}".strip())
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else NOTHING


def listed_findings(text: str, names: Sequence[str] = ()) -> tuple[Finding, ...]:
    """What a `finding_list` names, each with its side ("" where it has none), in the spelling of `names`, else in small letters."""
    known, findings = LabelSet(names), []
    for part in text.removesuffix(".").split("; ") if text not in ("", NOTHING) else []:
        first, _, rest = part.partition(" ")
        side = {"left": "left", "right": "right", "bilateral": "both"}.get(first.lower(), "")
        if part in known or not rest:  # "left ventricular hypertrophy" may be a name of its own
            side = ""
        name = rest if side else part
        findings.append(Finding(known.spelling(name) if name in known else name.lower(), side))
    return tuple(findings)


def _from_truth(study: Study, present_share: dict[str, float], seed: int) -> list[QuestionAnswer]:
    rng = stream(seed, "vqa", study.image_id)
    present = list(dict.fromkeys(f.name for f in study.truth))
    result = [
        QuestionAnswer(study.image_id, LIST_QUESTION, finding_list(study.truth), "list"),
        QuestionAnswer(study.image_id, NORMAL_QUESTION, "No." if present else "Yes.", "normal"),
    ]
    if len(present) < len(_NUMBERS):
        count = _NUMBERS[len(present)].capitalize() + "."
        result.append(QuestionAnswer(study.image_id, "How many different abnormal findings are there?", count, "count"))
    for name in present:
        share = present_share.get(name, 0.0)
        if share <= 0.5 or rng.random() < (1 - share) / share:  # see below, for findings that most images have
            result.append(
                QuestionAnswer(study.image_id, presence_question(name), PRESENCE_ANSWERS[0], "presence", name)
            )
        same = [f for f in study.truth if f.name == name]
        sides = {f.side for f in same if f.side}
        if sides:
            side = sides.pop() if len(sides) == 1 else "both"
            result.append(QuestionAnswer(study.image_id, side_question(name), SIDE_ANSWERS[side], "side", name))
        if len(severities := {f.severity for f in same if f.severity}) == 1:
            answer = severities.pop().capitalize() + "."
            result.append(QuestionAnswer(study.image_id, severity_question(name), answer, "severity", name))
        if len(kinds := {f.kind for f in same if f.kind}) == 1:
            result.append(
                QuestionAnswer(
                    study.image_id, f"What kind of {spoken(name)} is it?", kinds.pop().capitalize() + ".", "type", name
                )
            )
    # Each finding is asked about where it is absent with a chance that makes "no" as frequent as "yes" over all images,
    # so that the wording of a question gives nothing away.
    for name, share in present_share.items():
        if study.labels.get(name) == 0 and rng.random() < share / max(1e-9, 1 - share):
            result.append(
                QuestionAnswer(study.image_id, presence_question(name), PRESENCE_ANSWERS[1], "presence", name)
            )
    return result


def is_exact(study: Study) -> bool:
    """Whether all findings of an image are known exactly (the phantom)."""
    return bool(study.mask_path) or bool(study.truth)


def questions_of(studies: Sequence[Study], seed: int) -> Iterator[QuestionAnswer]:
    """Questions on studies whose findings are known exactly; answers balanced. Of others: `synthesis/rules.py`."""
    names = filter(is_finding, dict.fromkeys(name for study in studies for name in study.labels))
    share = {}
    for name in names:
        known = [study.labels[name] for study in studies if study.labels.get(name) in (0, 1)]
        share[name] = float(np.mean(known)) if known else 0.0
    return (question for study in studies if is_exact(study) for question in _from_truth(study, share, seed))


def write_questions(path: Path, questions: Iterable[QuestionAnswer]) -> int:
    """Write vqa.parquet as questions come; how many there were."""
    return write_rows(path, QuestionAnswer, questions)


def read_questions(path: Path) -> Sequence[QuestionAnswer]:
    """Read vqa.parquet, in some 50 bytes a question; `UserError` where it cannot be read."""
    return TextRows(path, QuestionAnswer, "the `vqa` stage")
