"""What the headings of a report mean: the vocabulary of `report_sections`.

It holds the names and misspellings that the published section parser of MIMIC-CXR documents (MIT-LCP/mimic-cxr,
txt/section_parser.py), and those of CheXpert Plus, of the Indiana reports and of free notes. A heading is read by its
words, so that "PORTABLE UPRIGHT AP VIEW OF THE CHEST" and "CHEST, TWO VIEWS" need no entry of their own.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "findings",
    "impression",
    "view",
    "organ",
    "body",
    "provisional",
    "addendum",
    "summary",
    "context",
    "closing",
    "unknown",
]


@dataclass(frozen=True)
class Heading:
    """`kind` says what stands under it:

    - findings, impression: that section;
    - view: a list of views, and so the findings of that examination;
    - organ: a part of the findings, whose heading is a part of the text ("Lungs: clear");
    - body: the whole report ("REPORT:", "NARRATIVE:");
    - provisional: a reading that the final report replaces ("WET READ:"); addendum: one that corrects it;
    - summary: a conclusion in some hospitals, a code in others (CheXpert Plus);
    - context: what was known before (indication, comparison, technique);
    - closing: what follows (recommendations, signatures);
    - unknown: none of these.

    `name` is the section's name, lower case and one for all spellings.
    """

    kind: Kind
    name: str


_ONE_WORD = {
    "finding": "findings", "findings": "findings",
    "impression": "impression", "impressions": "impression", "conclusion": "impression", "conclusions": "impression",
    "opinion": "impression", "interpretation": "impression", "diagnosis": "impression",
    "indication": "indication", "indications": "indication", "reason": "indication", "pfi": "provisional",
    "history": "history", "comparison": "comparison", "comparisons": "comparison",
    "technique": "technique", "techniques": "technique", "procedure": "technique", "protocol": "technique",
    "examination": "examination", "examinations": "examination", "exam": "examination",
    "study": "examination", "date": "date",
    "addendum": "addendum", "addenda": "addendum", "summary": "summary", "report": "body", "narrative": "body",
    "recommendation": "recommendations", "recommendations": "recommendations",
    "notification": "notification", "notifications": "notification", "attestation": "attestation",
}  # fmt: skip
_LONG = [word for word in _ONE_WORD if len(word) > 6]  # where a misspelling cannot be another word
# Words of a heading, the first rule that holds decides: section, and the words that must (all) be there.
_RULES: tuple[tuple[str, str], ...] = (
    ("attestation", r"attest\w*|signed|signature|dictated|transcribed|reviewed|radiologist|attending|resident"),
    ("accession number", r"accession|end of impression|contact (?:name|number)"),
    ("provisional", r"wet ?read\w*|provisional|(?:initial|resident|overnight) (?:read|reading|interpretation)"),
    ("addendum", r"addend(?:um|a)"),
    (
        "history",
        r"clinical (?:impression|diagnosis|findings?|history|information|data|details|question|statement)"
        r"|history|symptoms?",
    ),
    ("notification", r"critical (?:findings?|results?)|notifications?|communications?"),
    ("indication", r"indications?|reason (?:for|of)\b.*"),
    (
        "comparison",
        r"comparisons?|reference (?:exams?|examinations?|stud(?:y|ies)|films?)|priors?"
        r"|previous (?:exams?|stud(?:y|ies)|films?)",
    ),
    ("impression", r"impressions?|conclusions?"),
    ("findings", r"findings?"),
    ("recommendations", r"recommendations?(?: ?\(s\))?"),
    ("technique", r"techniques?|procedure comments?"),
    (
        "examination",
        r"(?:type|name|date) of (?:the )?(?:exam(?:ination)?|study)"
        r"|(?:exam|examination|study) (?:date|type|name|performed)",
    ),
)  # fmt: skip
_RULE_PATTERNS = tuple((name, re.compile(rf"(?<!\w)(?:{words})(?!\w)")) for name, words in _RULES)
_KINDS: dict[str, Kind] = {
    "findings": "findings", "impression": "impression", "provisional": "provisional", "addendum": "addendum",
    "summary": "summary", "body": "body", "recommendations": "closing", "notification": "closing",
    "attestation": "closing",
    "accession number": "closing",
}  # fmt: skip

NAMES = frozenset(
    {*_ONE_WORD.values(), *(name for name, _ in _RULES), "preamble", "views"}
)  # of sections that are known


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


_VIEW_WORDS = _vocabulary(
    """chest thorax thoracic view views frontal lateral lat pa ap anteroposterior posteroanterior portable upright
    erect semi semierect x-ray x-rays semiupright supine sitting seated radiograph radiographs radiography
    radiographic radiogram x ray rays xray xrays cxr film films plain image images exposure exposures single one
    two three four decubitus oblique lordotic bedside digital left right and of the with in at on from to a an
    am pm a.m p.m m dated obtained hours hrs rib ribs bone window windows series exam examination study
    expiratory inspiratory repeat additional upper abdomen both"""
)
_VIEW = re.compile(
    r"\bchest\b(?! ?(?:wall|tube|port|drain))|\bthorax\b|\bcxr\b|\bviews?\b|\bradiogra(?:ph|phs|phy|phic)\b"
    r"|\bfilms?\b|\bx-? ?rays?\b"
    r"|\bportable\b|\bfrontal\b|\bpa and lat"
)
_ORGAN_WORDS = _vocabulary(
    """lung lungs airway airways airspace airspaces parenchyma pleura pleural heart cardiac cardiomediastinum
    cardiomediastinal cardiovascular mediastinum mediastinal hila hilum hilar bone bones bony osseous skeletal
    skeleton musculoskeletal soft tissue tissues abdomen abdominal diaphragm diaphragms hemidiaphragms line
    lines tube tubes catheter catheters device devices hardware support trachea aorta aortic vessel vessels
    vascular vasculature pulmonary wall spine rib ribs structures structure spaces space silhouette contour
    contours size volumes effusion effusions pneumothorax consolidation edema opacity opacities nodule nodules
    mass masses fracture fractures atelectasis upper lower left right other life-support monitoring thoracic
    visualized great lobe apex base apices bases zone zones field fields medical chest"""
)
_SMALL_WORDS = _vocabulary("and or of the in on with to for a an")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z][a-z.'-]*", text)


@functools.lru_cache(65536)  # the headings of a data set are few
def read_heading(text: str) -> Heading:
    """What a heading (without its colon) means; by its words alone, whatever their case."""
    plain = " ".join(re.sub(r"[/&+]|(?<=\w)-(?=\w{4})", " and ", text.lower().replace("semi-", "semi")).split())
    words = [word.strip(".-'") for word in _words(plain)]
    name = _named(" ".join(re.sub(r"[^\w() ]", " ", plain).split()), words)
    if name:
        first_reading = name in ("findings", "impression") and re.search(r"\bprelim(?:inary)?\b", plain)
        return (
            Heading("provisional", f"preliminary {name}")
            if first_reading
            else Heading(_KINDS.get(name, "context"), name)
        )
    if re.match(r"prelim(?:inary)?\b", plain):
        return Heading("provisional", "provisional")
    if _VIEW.search(plain):
        return Heading("view", "views")
    if set(words) & (_ORGAN_WORDS - {"left", "right", "other"}):
        return Heading("organ", plain)
    return Heading("unknown", plain)


def _named(plain: str, words: list[str]) -> str:
    """The section that a heading names, "" where it names none. "Findings and impression" is the impression."""
    if len(words) == 1 and (name := _one_word(words[0])):
        return name
    if words and {"finding", "findings"} & set(words) and {"impression", "impressions", "conclusion"} & set(words):
        return "provisional" if re.search(r"\bprovisional\b", plain) else "impression"
    for name, pattern in _RULE_PATTERNS:
        if pattern.search(plain):
            return name
    near = [_one_word(word) for word in words if len(word) > 6]
    return next((name for name in near if name in ("findings", "impression")), "") if len(words) <= 3 else ""


def _one_word(word: str) -> str:
    if word in _ONE_WORD:
        return _ONE_WORD[word]
    if len(word) < 4:
        return ""
    if whole := [known for known in _LONG if known.startswith(word)]:
        return _ONE_WORD[whole[0]]  # cut short ("IMPRESS")
    # Misspelt: nearly the word, with its first letter or without it ("IMPRESSON", "MPRESSION").
    if len(word) < 6:
        return ""
    near = difflib.get_close_matches(word, _LONG, 3, 0.8)
    return next((_ONE_WORD[known] for known in near if word[0] == known[0] or word[:3] == known[1:4]), "")


def is_cut_short(text: str) -> bool:
    """Whether it is the beginning of a heading in capitals, where a text was cut off: "IMPRESS", "FIND"."""
    return (
        len(text) > 3 and text.isupper() and text.isalpha() and any(known.startswith(text.lower()) for known in _LONG)
    )


def is_view_list(text: str) -> bool:
    """Whether a line only names the examination ("AP CHEST, 9:40 A.M., ON ___"): words of views, numbers and blanks."""
    words = [word.strip(".-'") for word in _words(re.sub(r"semi-", "semi", text.lower()))]
    return bool(words) and all(word in _VIEW_WORDS or not word for word in words) and bool(_VIEW.search(text.lower()))


def is_organ_list(text: str) -> bool:
    """Whether a heading holds words of organs and nothing else ("Heart and mediastinum")."""
    words = re.findall(r"[a-z-]+", text.lower())
    return bool(words) and all(word in _ORGAN_WORDS or word in _SMALL_WORDS for word in words)


def as_prose(heading: str) -> str:
    """A heading in capitals as a sentence begins: "HEART AND MEDIASTINUM" is "Heart and mediastinum"; "ET" stays."""
    words = [w.lower() if w.lower().strip(",/()") in _ORGAN_WORDS | _SMALL_WORDS else w for w in heading.split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]
