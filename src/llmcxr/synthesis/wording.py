"""What a report says of things that the labeller has no term for, as far as shared words tell: "Is the aorta calcified?".

The one clause of the report that has all that a question names is compared with the answer: yes and no, normal or not, side,
level, severity, number and size. Where there is no such clause, or several, nothing is concluded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from llmcxr.synthesis.attributes import differ, one_sided, qualifiers_of, without_words, words_of

Agreement = Literal["entailed", "unknown", "contradicted"]

# Words that name nothing: of questions, and what is asked for.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be being been there any some of in on at to from this that it its seen visible present shown"
        " image radiograph chest x ray xray show shows does do did can could you see evidence sign signs have has what which where"
        " how and or with by for many much large big small severe side sides lung lungs lobe lobes zone zones part parts region"
        " location located direction size degree severity extent type kind number appear appears appearance look looks like"
        " describe position noted identified project end ends most more between mild moderate one both same within view"
        " bone bones chamber chambers structure structures level contour contours outline shape body bodies affected involved"
        " condition status state identify name clearly demonstrate demonstrates exhibit exhibits overall only"
        " caliber free sided unilateral bilateral spine way ways toward towards domed height pulmonary defined outlined",
    )
)
# Words that call something normal, or not: one against the other, and beside them what is named may be left out.
_NORMAL = re.compile(
    r"\b(?:normal(?:ly)?|unremarkable|intact|midline|sharp(?:ly)?|clear(?:ly)?|preserved|straight"
    r"|central(?! \w)|well[- ]\w+ed|maintained)\b"
)
_ABNORMAL = re.compile(
    r"\b(?:abnormal\w*|enlarge\w*|increased?|widen\w*|dilat\w*|prominen\w*|elevat\w*|shift\w*|displac\w*|deviat\w*|blunt\w*"
    r"|tortuous|congest\w*|engorge\w*|obscur\w*|indistinct|ill-defined|blurr\w*|silhouett(?:ed|ing)|efface\w*|flatten\w*"
    r"|broken|deform\w*|degenerat\w*|thicken\w*|collapse\w*|narrow\w*)\b"
)
# What is said in other words: as the first.
_SYNONYMS = [
    (re.compile(rf"\b(?:{words})\b"), one)
    for one, words in {
        "diaphragm": r"hemi-?\s?diaphragms?|diaphragms",
        "elevated": r"raised|(?<=diaphragm is )high",
        "opacification": "opaque|opacified",
        "destruction": "destroyed|destructive",
        "lobe resected": "lobectomy",
        "breast resected": "mastectomy",
        "lung resected": "pneumonectomy",
        "resected": "removed|excised",
        "prosthetic": r"prosthes[ie]s|arthroplasty|replaced|replacement|artificial|mechanical|bioprosthe\w+",
        "": r"(?:cardiac|heart) chambers?",
    }.items()
]
_DENIED = re.compile(r"\b(?:no|not|without|absent|never|none|negative for|free of|nor|neither)\b")
_DOUBTED = re.compile(
    r"\b(?:may|might|could|possib\w+|probabl\w+|likely|question\w*|suspic\w+|suspect\w*|suggest\w*|concern\w*|versus|vs|cannot"
    r"|equivocal|borderline|resol\w+|previous\w*|prior|remov\w+)\b|\?"
)
# Where something is shifted to: beside it a side says only what it is shifted by.
_TOWARDS = re.compile(r"\b(?:left|right)wards?\b|\bto(?:wards?)? the (?:left|right)\b")
_CLAUSE = re.compile(r"[,;:]|\b(?:and|with|but|while)\b|(?=\bwithout\b)")
_FEW = 6  # words of a clause that begins with a predicate and has no subject
_LEAST = 4  # letters of a word by which others are known: "calcified" and "calcification"


def agreement(content: str, answer: str, verdict: bool | None, report: Sequence[str]) -> tuple[Agreement, str]:
    """Whether lower-case `report` sentences say what is asserted, and the sentence that does.

    `content` is what the question names; `verdict` is yes, no, or None where `answer` tells what was asked for.
    """
    content = _plain(content)
    named = _named(content)
    states = [match[0] for pattern in (_NORMAL, _ABNORMAL) for match in pattern.finditer(content)]
    things = [word for word in named if word not in states]
    if verdict is None:
        if not things:
            things, states = states, []  # "what is enlarged": what it is said of is the answer
        elif _NORMAL.search(answer) or _ABNORMAL.search(answer):
            states, verdict, content = re.findall(r"[\w-]+", answer), True, f"{content} {answer}"
    if _DENIED.search(content) and verdict is not None:
        verdict = not verdict  # "is the arch free of calcification"
    if not things:
        return "unknown", ""
    found = [(part, sentence) for sentence in report for part in _clauses(_plain(sentence), things)]
    told = [(_judge(content, answer, verdict, things, states, part, sentence), sentence) for part, sentence in found]
    for agreement_ in ("entailed", "unknown", "contradicted"):
        if (own := next((sentence for one, sentence in told if one == agreement_), None)) is not None:
            return agreement_, own if agreement_ != "unknown" else ""
    return "unknown", ""


def denied_alone(content: str, noun: str, report: Sequence[str]) -> str:
    """The lower-case `report` sentence that denies what a text names beside `noun` and speaks of nothing else; "" where
    there is none."""
    named, about = ({_stem(word) for word in words} for words in (_named(content.replace(noun, " ")), _words(noun)))
    for sentence in report if named else ():
        if _DENIED.match(sentence) and named == {_stem(word) for word in _words(sentence)} - about:
            return sentence
    return ""


def _judge(
    content: str,
    answer: str,
    verdict: bool | None,
    things: Sequence[str],
    states: Sequence[str],
    clause: str,
    sentence: str,
) -> Agreement | None:
    """What one clause that has all that the question names says of it; None where it says nothing of what is asked."""
    if _DOUBTED.search(clause):
        return "unknown"
    if verdict is None:
        if _DENIED.search(clause) and not _DENIED.search(content):
            return "unknown"
        return _same(f"{answer.rstrip('. ')} {' '.join(things)}", clause)  # "the left": atrium
    if states and not (_NORMAL.search(clause) or _ABNORMAL.search(clause)):
        clause = sentence  # "hila and vessels are normal"
    there = _state(states, clause)
    if there is None:
        return "unknown"
    fits = _same(content, clause) if there else "entailed"
    if fits is None and not {"sides", "levels", "degrees", "traits"} & qualifiers_of(content).keys():
        fits = "entailed"
    if fits is None or (fits == "contradicted" and not verdict):
        return None
    return "entailed" if (fits == "entailed") == (verdict == there) else "contradicted"


def _plain(text: str) -> str:
    for pattern, one in _SYNONYMS:
        text = pattern.sub(one, text)
    return text


def _named(content: str) -> list[str]:
    plain = content
    for group in ("sides", "levels", "degrees", "traits"):
        bare = without_words(plain, group, {"upper", "middle", "lower"} if group == "levels" else None)
        if group != "traits" or _words(bare):  # a trait is what is asked about where nothing else is
            plain = bare
    return _words(plain)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text) if word not in _EMPTY and not _DENIED.fullmatch(word)]


def _clauses(sentence: str, things: Sequence[str]) -> list[str]:
    """The parts of a sentence that have all things; the whole where they are spread over several."""
    if not all(_has(sentence, word) for word in things):
        return []
    parts = list[str]()
    for part in _CLAUSE.split(sentence):
        words = part.split()
        if (
            parts
            and 0 < len(words) < _FEW
            and (
                _ABNORMAL.match(words[0])
                or _NORMAL.match(words[0])
                or any(words_of(words[0], group) for group in ("traits", "levels"))
            )
        ):
            parts[-1] += f" and {part}"  # "the aorta is tortuous and calcified"
        else:
            parts.append(part)
    return [part for part in parts if all(_has(part, word) for word in things)] or [sentence]


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(_stem(word))}", text) is not None


def _stem(word: str) -> str:
    return word[: max(_LEAST, len(word) - 3)]


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


def _same(claim: str, clause: str) -> Agreement | None:
    """Whether side, level, severity, number, size and traits in a claim are those of a clause; None where it has none."""
    wanted, there = qualifiers_of(claim), qualifiers_of(clause)
    if _ABNORMAL.search(clause) and (towards := _TOWARDS.findall(clause)):
        there["sides"] = qualifiers_of(" ".join(towards))["sides"]
    if differ(wanted, there) or (one_sided(claim) and len(there.get("sides", ())) == 2):
        return "contradicted"
    shared = wanted.keys() & there.keys()
    return "entailed" if shared and not (shared == {"traits"} and not wanted["traits"] & there["traits"]) else None
