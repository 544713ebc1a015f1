"""What a report says of things that the labeller has no term for, as far as shared words tell: "Is the aorta calcified?".

The one clause of the report that has all that a question names is compared with the answer: yes and no, normal or not, side,
level, severity, number and size. Where there is no such clause, or several, nothing is concluded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from llmcxr.synthesis.statements import both_sides, sizes_of, without_words, words_of

Agreement = Literal["entailed", "unknown", "contradicted"]

# Words that name nothing: of questions, and what is asked for.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be being been there any some of in on at to from this that it its seen visible present shown"
        " image radiograph chest x ray xray show shows does do did can could you see evidence sign signs have has what which where"
        " how and or with by for many much large big small severe side sides lung lungs lobe lobes zone zones part parts region"
        " location located direction size degree severity extent type kind number appear appears appearance look looks like"
        " describe position noted identified project end ends most more between mild moderate one both same within view",
    )
)
# Words that call something normal, or not: one against the other, and beside them what is named may be left out.
_NORMAL = re.compile(r"\b(?:normal(?:ly)?|unremarkable|intact|midline|sharp|clear|preserved)\b")
_ABNORMAL = re.compile(
    r"\b(?:abnormal\w*|enlarge\w*|increased?|widen\w*|dilat\w*|prominen\w*|elevat\w*|shift\w*|displac\w*|deviat\w*|blunt\w*"
    r"|tortuous|congest\w*|engorge\w*)\b"
)
_DENIED = re.compile(r"\b(?:no|not|without|absent|never|none|negative for|free of|nor|neither)\b")
_DOUBTED = re.compile(
    r"\b(?:may|might|could|possib\w+|probabl\w+|likely|question\w*|suspic\w+|suspect\w*|suggest\w*|concern\w*|versus|vs|cannot"
    r"|equivocal|borderline|resol\w+|previous\w*|prior|remov\w+)\b|\?"
)
_CLAUSE = re.compile(r"[,;:]|\b(?:and|with|but|while)\b")
_LEAST = 4  # letters of a word by which others are known: "calcified" and "calcification"


def agreement(content: str, answer: str, verdict: bool | None, report: Sequence[str]) -> tuple[Agreement, str]:
    """Whether lower-case `report` sentences say what is asserted, and the sentence that does.

    `content` is what the question names; `verdict` is yes, no, or None where `answer` tells what was asked for.
    """
    named = _named(content)
    states = [word for word in named if _NORMAL.fullmatch(word) or _ABNORMAL.fullmatch(word)]
    things = [word for word in named if word not in states]
    if not things:
        return "unknown", ""
    found = [(clause, sentence) for sentence in report for clause in _clauses(sentence, things)]
    if len(found) != 1 or _DOUBTED.search(found[0][0]):
        return "unknown", ""
    clause, sentence = found[0]
    if verdict is None:
        return ("unknown", "") if _DENIED.search(clause) else (_same(answer, clause), sentence)
    there = _state(states, clause)
    if there is None:
        return "unknown", ""
    fits: Agreement = _same(content, clause) if there else "entailed"
    if fits == "unknown" and not any(words_of(content, group) for group in ("sides", "levels", "degrees")):
        fits = "entailed"
    if fits == "unknown" or (fits == "contradicted" and not verdict):
        return "unknown", ""
    return ("entailed" if (fits == "entailed") == (verdict == there) else "contradicted"), sentence


def _named(content: str) -> list[str]:
    plain = content
    for group in ("sides", "levels", "degrees"):
        plain = without_words(plain, group)
    return [word for word in re.findall(r"[a-z]+", plain) if word not in _EMPTY]


def _clauses(sentence: str, things: Sequence[str]) -> list[str]:
    """The parts of a sentence that have all things; the whole where they are spread over several."""
    parts = [part for part in _CLAUSE.split(sentence) if all(_has(part, word) for word in things)]
    return parts or [sentence] * all(_has(sentence, word) for word in things)


def _has(text: str, word: str) -> bool:
    stem = word[: max(_LEAST, len(word) - 3)]
    return re.search(rf"\b{re.escape(stem)}", text) is not None


def _state(states: Sequence[str], clause: str) -> bool | None:
    """Whether a clause states what the question asks of a thing (its words for normal or not, or that it is there)."""
    denied = bool(_DENIED.search(clause))
    normal, abnormal = bool(_NORMAL.search(clause)), bool(_ABNORMAL.search(clause))
    if not states:
        return None if normal else not denied
    if normal == abnormal:
        return None
    asked_normal = any(_NORMAL.fullmatch(word) for word in states)
    return (asked_normal == normal) != denied


def _same(claim: str, clause: str) -> Agreement:
    """Whether side, level, severity, number and size in a claim are those of a clause."""
    known = False
    for group in ("sides", "levels", "degrees", "counts"):
        wanted, there = ({value for _, _, value in words_of(text, group)} for text in (claim, clause))
        if group == "sides":
            wanted, there = set(both_sides(wanted)), set(both_sides(there))
        if wanted and there:
            if not wanted & there or (group == "sides" and not wanted <= there):
                return "contradicted"
            known = True
    wanted_sizes, there_sizes = sizes_of(claim), sizes_of(clause)
    if wanted_sizes and there_sizes:
        if not wanted_sizes & there_sizes:
            return "contradicted"
        known = True
    return "entailed" if known else "unknown"
