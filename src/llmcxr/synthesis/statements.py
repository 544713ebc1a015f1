"""What a text says of each finding, finer than labels: side, severity, level of the lung, size, number, kind of device.

The rule labeller finds the mentions (`labelling/rules.py`), each term on its own. A word that qualifies belongs to the
mention that is nearest, over as few others, commas and conjunctions as possible, and never across a new statement.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from dataclasses import dataclass

from llmcxr.labelling import cues, terms
from llmcxr.labelling.base import Mention
from llmcxr.labelling.rules import RuleLabeller
from llmcxr.studies.findings import normal_form
from llmcxr.studies.sentences import sentences

DEVICE = "support device"
# A term and what is an instance of it: "consolidation" states an opacity, "no opacity" denies consolidation.
NARROWER: dict[str, tuple[str, ...]] = {"opacity": ("consolidation", "pneumonia"), "lung lesion": ("mass", "nodule")}
WIDER: dict[str, tuple[str, ...]] = {
    "consolidation": ("opacity",),
    "pneumonia": ("opacity",),
    "mass": ("lung lesion",),
    "nodule": ("lung lesion",),
}
# Each kind of device and its words, the more special first.
DEVICES: dict[str, str] = {
    "chest tube": r"chest (?:tubes?|drains?)|pigtails?(?: catheters?)?|thoracostomy(?: tubes?)?|pleural (?:tubes?|drains?)",
    "tracheostomy": r"tracheostomy(?: tubes?)?",
    "endotracheal tube": r"endotracheal(?: tubes?)?|\bett\b|\bet tubes?",
    "feeding tube": r"(?:feeding|ng|og|nasogastric|orogastric|enteric|gastric) tubes?|\bdob?bhoff(?: tubes?)?|nasogastric",
    "pacemaker": r"pace-?\s?makers?|pacers?|pac(?:ing|er) \w+|aicd|\bicd\b|(?:cardioverter.)?defibrillators?|generator|leads?",
    "port": r"port-?\s?a-?\s?cath\w*|medi-?\s?ports?|(?:chest |infusion |venous )?port",
    "central line": r"picc(?: lines?)?|central (?:venous )?(?:lines?|catheters?)|cvc"
    r"|(?:jugular|subclavian|ij|venous|dialysis) (?:venous )?(?:lines?|catheters?)|swan\S*(?: catheter)?",
    "sternal wires": r"(?:sternal|sternotomy|median sternotomy) wires?",
    "surgical clips": r"(?:surgical )?clips?",
    "heart valve": r"(?:prosthetic |artificial |mechanical )?(?:heart |aortic |mitral |cardiac )?valves?",
}
_COUNTS = {"one": 1, "single": 1, "solitary": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_WORDS: dict[str, dict[str, str]] = {
    "sides": {
        "both": r"bilateral(?:ly)?|bibasilar|bibasal|biapical|both|(?:left|right) and (?:the )?(?:left|right)",
        "left": r"left(?:-sided|wards?)?|lingular?",
        "right": r"right(?:-sided|wards?)?",
    },
    "degrees": {
        "mild": r"mild(?:ly)?|minimal(?:ly)?|small|trace|tiny|slight(?:ly)?|minor|subtle",
        "moderate": r"moderate(?:ly)?|medium",
        "severe": r"severe(?:ly)?|large|marked(?:ly)?|massive|extensive|gross(?:ly)?|substantial",
    },
    "levels": {
        "upper": r"upper(?! (?:limit|normal|abd|extrem|thoracic spine))|apex|apices|apical|biapical",
        "middle": r"mid(?:dle)?(?=[ -](?:lobe|lung|zone|field|to))",
        "lower": r"lower(?! (?:limit|extrem|thoracic spine|lung volumes))|bas(?:e|es|al|ilar)|bibasilar|bibasal"
        r"|retrocardiac|infrahilar",
        "hilar": r"(?:peri|para)?hilar|perihilum",
    },
    "traits": {
        "focal": r"focal|localized",
        "diffuse": r"diffuse(?:ly)?|widespread|generali[sz]ed",
        "acute": r"acute",
        "old": r"old|healed|chronic|remote",
        "single": r"(?:single|one)[- ](?:chamber|lead)",
        "dual": r"(?:dual|double|two)[- ](?:chamber|lead)|biventricular",
    },
    "kinds": DEVICES,
    "counts": {word: rf"{word}|{number}(?! ?(?:mm|cm|\.|%))" for word, number in _COUNTS.items()},
}
_SIZE = re.compile(r"\b(\d+(?:\.\d+)?) ?(mm|cm)\b")
# Words that open no statement of their own ("bilateral"), by group: where two begin together the longest counts.
_PATTERNS = {
    group: re.compile("|".join(rf"\b(?P<w{k}>{pattern})\b" for k, pattern in enumerate(words.values())))
    for group, words in _WORDS.items()
}
_UNSEEN_TIP = re.compile(
    r"\b(?:the |its )?tip (?:is |was |which is )?(?:not|out of|outside|beyond)(?: well| clearly| fully)?"
    r" (?:seen|visuali[sz]ed|included|imaged|identified|the (?:image|field|view)\w*)",
    re.IGNORECASE,
)
_PAUSE = re.compile(r",|;|\b(?:and|or|with)\b")
_BOTH = re.compile(r"\b(?:left|right)(?:-sided)?(?: \w+)? and (?:an? )?(?:\w+ )?(?:left|right)\b")
_REACH = 90  # characters
PLACE = re.compile(
    r"\b(?:(?:left|right|both|bilateral) )?(?:(?:upper|lower|mid(?:dle)?)[ -](?:and (?:upper|lower|mid(?:dle)?)[ -])?"
    r"(?:lobes?|lungs?|zones?|lung (?:zones?|fields?))|(?:lung )?(?:bases?|apex|apices)|lingula"
    r"|(?:peri)?hilar regions?|costophrenic (?:angles?|sulcus))\b"
)

_ALL_NORMAL = re.compile(
    r"\b(?:normal|unremarkable|negative) (?:\w+ ){0,2}(?:chest|examination|exam|study|radiograph|cxr|x-?ray)\b"
    r"|\b(?:chest|examination|exam|study|radiograph|image) (?:is|appears) (?:\w+ )?(?:normal|unremarkable)\b"
    r"|\bno (?:\w+ ){0,3}(?:abnormalit(?:y|ies)|abnormal findings?|disease|process|findings?)\b|^\W*(?:normal|none|nothing)\W*$"
)
_VOCABULARY = {
    normal_form(name): named for vocabulary in (terms.CHEXPERT, terms.FINDINGS) for name, named in vocabulary.items()
}

_LABELLER = RuleLabeller({term: (term,) for term in terms.PRESENT})


@dataclass(frozen=True, slots=True)
class Statement:
    """One mention of a finding with what is said of it; a set is empty where the text says nothing."""

    term: str  # of `terms.PRESENT`
    state: int  # 1 affirmed, 0 denied, -1 uncertain
    sentence: str
    sides: frozenset[str] = frozenset()  # "left", "right"
    degrees: frozenset[str] = frozenset()  # "mild", "moderate", "severe": of severity or size
    levels: frozenset[str] = frozenset()  # "upper", "middle", "lower", "hilar"
    traits: frozenset[str] = frozenset()  # "focal", "diffuse", "acute", "old"
    kinds: frozenset[str] = frozenset()  # of `DEVICES`
    counts: frozenset[int] = frozenset()
    sizes: frozenset[float] = frozenset()  # mm
    place: str = ""  # the part of the lung, as the text has it

    def denies(self, sides: frozenset[str] = frozenset()) -> bool:
        """Of a statement that denies: whether it does on these sides (none: anywhere). "The left lung is clear" leaves the
        right one open."""
        return len(self.sides) != 1 or (bool(sides) and sides <= self.sides)


def terms_named(finding: str) -> tuple[str, ...]:
    """The terms of a finding as data spell it ("Pleural_Effusion"); none where it is no finding of the labeller."""
    return _VOCABULARY.get(normal_form(finding), ())


def says_all_is_normal(text: str) -> bool:
    """Whether a text calls the whole image normal, or denies all (acute) abnormality."""
    return bool(_ALL_NORMAL.search(text.lower()))


def words_of(text: str, group: str) -> list[tuple[int, int, str]]:
    """(start, end, value) of the words of a group ("sides", "degrees", ...) in a lower-case text."""
    values = list(_WORDS[group])
    return [(m.start(), m.end(), values[int(str(m.lastgroup)[1:])]) for m in _PATTERNS[group].finditer(text)]


def without_words(text: str, group: str) -> str:
    """A lower-case text without the words of a group."""
    return " ".join(_PATTERNS[group].sub(" ", text).split())


def both_sides(sides: set[str]) -> frozenset[str]:
    """ "both" as the two sides that it means."""
    return frozenset(sides - {"both"}) | (frozenset({"left", "right"}) if "both" in sides else frozenset())


def statements_of(text: str) -> list[Statement]:
    """What a text says, in its order."""
    return [statement for sentence in sentences(text) for statement in _said(sentence)]


@functools.lru_cache(maxsize=50_000)  # reports repeat their sentences
def _said(sentence: str) -> tuple[Statement, ...]:
    # "Tube below the diaphragm, tip not seen": the tube is there; letters keep their places
    read = _UNSEEN_TIP.sub(lambda match: " " * len(match[0]), sentence)
    mentions = sorted(_LABELLER.read(read).mentions, key=lambda m: (m.start, m.end))
    if not mentions:
        return ()
    lower = sentence.lower()
    clusters = _clusters(mentions)
    own: list[dict[str, set[str]]] = [{} for _ in clusters]
    # "moderate left and small right effusions" are two, though "and small" opens a statement elsewhere
    pairs = [m.span() for m in _BOTH.finditer(lower) if not any(m.start() < c[0].start < m.end() for c in clusters)]
    breaks = [b for b in (m.start() for m in cues.BREAK.finditer(lower)) if not any(a < b < z for a, z in pairs)]
    devices = [c for c, cluster in enumerate(clusters) if any(m.finding == DEVICE for m in cluster)]
    for group in _WORDS:
        targets = devices if group == "kinds" else range(len(clusters))
        for start, end, value in words_of(lower, group):
            if (at := _nearest(lower, start, end, clusters, targets, breaks)) is not None:
                own[at].setdefault(group, set()).add(value)
    for group, pattern in (("sizes", _SIZE), ("place", PLACE)):
        for match in pattern.finditer(lower):
            if (at := _nearest(lower, *match.span(), clusters, range(len(clusters)), breaks)) is not None:
                own[at].setdefault(group, set()).add(match[0])
    for start, end in pairs:
        if (at := _nearest(lower, start, end, clusters, range(len(clusters)), breaks)) is not None:
            own[at]["sides"] = {"both"}
    return tuple(_statement(m, own[c], sentence) for c, cluster in enumerate(clusters) for m in cluster)


def _statement(mention: Mention, words: dict[str, set[str]], sentence: str) -> Statement:
    read = words.get("sides", set[str]())
    if mention.finding in terms.SIDED and read != {"both"} and mention.state:
        read = {mention.side} - {""}  # the labeller's, which tells none of "the left lung is clear"
    places = sorted(words.get("place", ()))
    return Statement(
        mention.finding,
        mention.state,
        sentence,
        both_sides(read),
        frozenset(words.get("degrees", ())),
        frozenset(words.get("levels", ())),
        frozenset(words.get("traits", ())),
        frozenset(words.get("kinds", ())) if mention.finding == DEVICE else frozenset(),
        frozenset(_COUNTS[word] for word in words.get("counts", ())),
        frozenset(sizes_of(" ".join(words.get("sizes", ())))),
        places[0] if len(places) == 1 else "",
    )


def sizes_of(text: str) -> set[float]:
    """Measures in a lower-case text, in millimetres."""
    return {float(number) * (10 if unit == "cm" else 1) for number, unit in _SIZE.findall(text)}


def _clusters(mentions: list[Mention]) -> list[list[Mention]]:
    """Mentions that share characters are about one thing ("calcified nodule")."""
    clusters: list[list[Mention]] = []
    end = -1
    for mention in mentions:
        if mention.start < end:
            clusters[-1].append(mention)
        else:
            clusters.append([mention])
        end = max(end, mention.end)
    return clusters


def _nearest(
    text: str, start: int, end: int, clusters: list[list[Mention]], targets: range | list[int], breaks: list[int]
) -> int | None:
    """The cluster that the word at [start, end) belongs to."""
    ranked = []
    for at in targets:
        first, last = clusters[at][0].start, max(m.end for m in clusters[at])
        low, high = (last, start) if start >= first else (end, first)
        gap = text[low:high]
        if len(gap) > _REACH or bisect_left(breaks, low) < bisect_left(breaks, high):
            continue
        crossed = sum(low <= cluster[0].start < high for k, cluster in enumerate(clusters) if k != at)
        ranked.append((2 * crossed + len(_PAUSE.findall(gap)), len(gap), at))
    return min(ranked)[2] if ranked else None
