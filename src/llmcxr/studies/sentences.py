"""Sentences of a report, and whether one says what is seen on the image."""

from __future__ import annotations

import re

_ABBREVIATION = re.compile(r"\b(?:dr|drs|mr|mrs|ms|vs|approx|e\.g|i\.e|a\.m|p\.m|no|st|fig|pt|resp)\.$", re.IGNORECASE)
_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)")
_LIST_NUMBER = re.compile(r"\(?\d{1,2}[.)]+$")

# What a chest radiograph can show, and what is said of it: enough to tell a description from an indication or a
# technique.
_SEEN = re.compile(
    r"\b(?:lungs?|pulmonary|pleura\w*|effusions?|pneumothora\w+|hemithora\w+|opaci\w+|opacif\w+|consolidat\w+"
    r"|infiltrat\w+|atelecta\w+"
    r"|cardi\w+|heart|silhouette|mediasti\w+|hil(?:a|ar|um)|edema|oedema|congestion|vascul\w+|nodul\w+|mass(?:es)?"
    r"|fractur\w+|tubes?"
    r"|catheters?|lines?|picc|pacemaker|leads?|wires?|sternotomy|clips?|(?:hemi)?diaphragm\w*|costophrenic|bones?"
    r"|bony|osseous|airspace"
    r"|aort\w+|emphysem\w*|pneumoni\w+|interstiti\w+|ground[- ]glass|lobes?|lobar|bibasilar|bilateral|abnormalit\w+"
    r"|disease|process"
    r"|appearances?|unremarkable|normal|hernia|scoliosis|granuloma\w*|port|stent|calcif\w+)\b",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"^(?:\W*\d+[.)]\W*)?(?:there|no|new|small|large|mild|moderate|severe|stable|unchanged|normal|clear|again"
    r"|persistent|increas\w+|decreas\w+"
    r"|worsen\w+|improv\w+|low|bilateral|multiple|diffuse|patchy|minimal|trace|tiny|interval (?:in|de)crease"
    r"|bibasilar|right|left|unremarkable|extensive)\b"
    r"|\b(?:is|are|has|have|had|was|were|remains?|appears?|persists?|shows?|showed|demonstrates?|demonstrated"
    r"|reveals?|terminates?|ends?"
    r"|projects?|overl(?:y|ies)|noted|seen|identified|present|unchanged|stable|clear|normal|intact|unremarkable"
    r"|improved|worsened|increased"
    r"|decreased|resolved|showing|suggest\w*|consistent with|compatible with|without)\b",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"\?|//|\b(?:evaluat\w+|assess|eval|please|rule out|r/o|assessment of|year[- ]?old|yo|y/o|presents?|presented"
    r"|presenting|pain|fever|cough"
    r"|dyspnea|history of|h/o|s/p|status[- ]post|followup of|admitted|transferred)\b|^\W*_+ ?-?year|_[MF]\b",
    re.IGNORECASE,
)
_TECHNICAL = re.compile(
    r"^\W*(?:(?:in )?compar(?:ison|ed)\b|correlat|reference\b)"
    r"|\b(?:submitted|obtained|provided|reviewed|acquired|available|performed|dictat\w+|discussed|communicated"
    r"|telephone\w*|notified|paged)\b"
    r"|\b(?:views?|films?|radiographs?|study|examination|exam) (?:\S+ ){0,6}(?:dated|at \d)",
    re.IGNORECASE,
)
_SEEN_AFTER_ALL = re.compile(
    r"\b(?:effusion|pneumothora|opaci|consolidat|atelecta|edema|lungs? (?:is|are)|heart|cardiomegaly)", re.IGNORECASE
)


def sentences(text: str) -> list[str]:
    """The sentences of a text without line breaks; joined they are the text. A list number stays with its own."""
    parts, begin = [], 0
    for end in _END.finditer(text):
        following = text[end.end() : end.end() + 3].lstrip()
        before = text[max(begin, end.end() - 8) : end.end()]
        if following[:1].islower() or _ABBREVIATION.search(before) or _LIST_NUMBER.fullmatch(before.strip()):
            continue
        parts.append(text[begin : end.end()].strip())
        begin = end.end()
    if rest := text[begin:].strip():
        parts.append(rest)
    return parts


def is_technical(sentence: str) -> bool:
    """Whether it only says what was taken, compared, or told to whom ("Comparison is made to the study of ___.")."""
    return bool(_TECHNICAL.search(sentence)) and not _SEEN_AFTER_ALL.search(sentence)


def says_what_is_seen(sentence: str) -> bool:
    """Whether a sentence describes the image: it states something to be seen, and neither asks nor tells a history."""
    return (
        bool(_SEEN.search(sentence) and _SAID.search(sentence))
        and not _ASKED.search(sentence)
        and not is_technical(sentence)
    )


def names_what_is_seen(text: str) -> bool:
    """Whether a text names anything that a chest radiograph can show, in whatever form."""
    return bool(_SEEN.search(text))
